"""`sweep.fused=auto`: measure which way of training the points of a study is fastest, and choose it.

<study>/fused.json   what was measured and chosen; the same command continues in the same way
"""

import logging

from cli.launcher_config import BasicLauncher, LocalLauncher
from cli.sweep_config import SweepConfig
from launch.fused import group_runs
from launch.resources import compute_resources
from launch.study import Study
from nanogpt import schema
from nanogpt.config import BenchConfig
from nanogpt.config.bench import Way
from nanogpt.data.prepare import prepare_if_small
from nanogpt.errors import BadEnvironment, BadInput, one_line
from nanogpt.estimates.flops import compute_total_steps
from nanogpt.files import write_atomic
from nanogpt.schema import ConfigModel

logger = logging.getLogger(__name__)

FILE = "fused.json"
MOST_MODELS = 16  # in one network
LEAST_S = 1.0  # time that the steps of each way are measured for
LONG_STEP_S = 1.0  # from here on, a network of several models would need much memory and save next to nothing
NAMES = {"alone": "one after the other", "network": "as one network", "processes": "processes at once"}


class Choice(ConfigModel):
    """The way in which the points of a study are trained."""

    way: Way
    models: int
    """Points in one network."""
    processes: int
    """Points at once in processes of their own."""
    steps: int
    """Steps of the points."""
    run_s: dict[Way, float]
    """Seconds of a run, divided among the points that are trained at once, by way."""

    def describe(self) -> str:
        """Return what was measured and chosen in one line."""
        counts = {"network": f"{self.models} ", "processes": f"{self.processes} "}
        times = [f"{counts.get(way, '')}{NAMES[way]} {time:.3g} s" for way, time in self.run_s.items()]
        words = f"expected time per point, {self.steps:,} steps without evaluations: {', '.join(times)}"
        return f"{words}; chosen: {counts.get(self.way, '')}{NAMES[self.way]}"


def choose_way(study: Study, settings: SweepConfig) -> tuple[BasicLauncher | LocalLauncher, SweepConfig]:
    """Return the launcher and settings of the fastest way to train the points here. Raises LabError."""
    path = study.path / FILE
    if study.runs[0].config.dry_run:
        logger.info("fused   auto: the fastest way is measured when the sweep starts")
        return BasicLauncher(), settings
    if path.exists():
        choice = schema.read_config(Choice, path)
    else:
        choice = measure(study)
        study.path.mkdir(parents=True, exist_ok=True)
        write_atomic(path, schema.to_json(choice))
    logger.info(f"fused   auto: {choice.describe()}")
    if choice.way == "processes":
        return LocalLauncher(points_per_job="auto"), settings.model_copy(update={"fused": None})
    return BasicLauncher(), settings.model_copy(update={"fused": choice.models if choice.way == "network" else None})


def measure(study: Study) -> Choice:
    """Measure a step of the largest group of points that can be one network. Raises LabError."""
    from nanogpt.benchmark.comparison import with_known_vocabulary  # imports torch
    from nanogpt.benchmark.models_at_once import WayTime, measure_way
    from nanogpt.device import set_up_device
    from nanogpt.training.fused import check_fusable

    group = max(group_runs(study.runs, MOST_MODELS), key=len)
    for data in {planned.config.data.model_dump_json(): planned.config.data for planned in study.runs}.values():
        prepare_if_small(data, group[0].config.model.block_size)
    resources = compute_resources(group[0].config, LocalLauncher(points_per_job="auto"))
    processes = min(len(study.runs), resources.points_per_job)
    config = schema.from_dict(BenchConfig, group[0].config.model_dump() | {"bench": {"warmup": 2, "steps": 3}})
    config = with_known_vocabulary(config)
    if set_up_device(config.hardware).device.type != "cpu":
        processes = 1  # points that share a GPU would wait for each other
    logger.info("fused   auto: measuring for a few seconds")
    found: dict[Way, WayTime] = {"alone": measure_way(config, "alone", 1, LEAST_S)}
    if processes > 1:
        found["processes"] = measure_way(config, "processes", processes, LEAST_S)
    if (models := len(group)) > 1 and found["alone"].step_s < LONG_STEP_S:
        try:
            check_fusable([planned.config for planned in group])
            found["network"] = measure_way(config, "network", models, LEAST_S)
        except (BadInput, BadEnvironment) as error:
            logger.info(f"fused   auto: {models} as one network: {one_line(error, 300)}")
    steps = compute_total_steps(config, config.model)
    times: dict[Way, float] = {way: time.total(steps) for way, time in found.items()}
    return Choice(
        way=min(times, key=lambda way: times[way]), models=models, processes=processes, steps=steps, run_s=times
    )
