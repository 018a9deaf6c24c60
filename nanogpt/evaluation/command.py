"""`python evaluate.py`: evaluate a model on one or more ranks; print a table and append to evaluations.jsonl."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nanogpt import schema
from nanogpt.config import BenchmarkName, EvalConfig, EvaluateConfig, HardwareConfig
from nanogpt.console import mute, print_text
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import Compute, attention_used, set_up_device
from nanogpt.distributed.env import RankEnv, read_rank_env
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.distributed.rendezvous import rendezvous
from nanogpt.distributed.signals import StopFlag
from nanogpt.distributed.watchdog import Watchdog, join_with_watchdog
from nanogpt.errors import STOPPED, BadCheckpoint, BadData, BadEnvironment, BadInput
from nanogpt.evaluation.loss import LossEvaluation, Stopped
from nanogpt.evaluation.measured import describe_measurement
from nanogpt.evaluation.statistics import Metric, bounded_exp
from nanogpt.evaluation.tasks import TaskEvaluation, fingerprint, load_benchmark
from nanogpt.files import append_line, read_json
from nanogpt.formatting import format_table
from nanogpt.gpus import RankReport, choose_gpu, report_gpus
from nanogpt.interop.load_model import TrainedModel, load_trained
from nanogpt.json_output import print_result
from nanogpt.measurement import MEASUREMENT_KEY, spec_digest, to_dict
from nanogpt.model.gpt import GPT
from nanogpt.output_paths import check_output_file
from nanogpt.training.auto_batch_size import is_out_of_memory

logger = logging.getLogger(__name__)

FILE = "evaluations.jsonl"
MOST_TOKENS = 2**53  # more than any data set
TIMEOUT = 120.0  # seconds of the rendezvous
TaskName = Literal["loss", BenchmarkName]
Evaluate = Callable[[GPT, Callable[[], bool]], dict[str, Metric]]


@dataclass(frozen=True)
class EvalTask:
    """A task with its data, ready to evaluate models."""

    name: str
    evaluate: Evaluate
    documents: int
    """Number of documents; for the loss, of windows."""
    data: str
    """Fingerprint of the documents, or of the data set."""
    measurement: dict[str, Any] | None = None
    """For the loss: what it is measured on, as training records it."""

    @property
    def size(self) -> str:
        """Number of documents with its unit."""
        return f"{self.documents:,} {'windows' if self.name == 'loss' else 'documents'}"


@dataclass(frozen=True)
class TaskResult:
    """Metrics of a task."""

    task: EvalTask
    metrics: dict[str, Metric]
    seconds: float


@dataclass
class Report:
    """Results of all tasks, each with its line of evaluations.jsonl."""

    trained: TrainedModel
    out: Path | None
    """File that the results are appended to."""
    n_tasks: int
    results: list[tuple[TaskResult, dict[str, Any]]] = field(default_factory=list[tuple[TaskResult, dict[str, Any]]])
    stopped_by: str | None = None
    """Signal that arrived before all tasks were done."""

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        results = [record | {"time_s": result.seconds} for result, record in self.results]
        about = {"model": self.trained.name, "step": self.trained.step, "out": self.out, "stopped_by": self.stopped_by}
        return about | {"results": results}


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate the tasks of `config.eval`. Return 0, or 85 if a signal stopped it between tasks. Raises LabError.

    With RANK, WORLD_SIZE, … in the environment (torchrun) this is one rank of several.
    """
    rank_env = read_rank_env(os.environ)
    mute(rank_env.rank > 0)
    compute, group = rendezvous(
        rank_env,
        TIMEOUT,
        lambda facts: choose_device(config, rank_env, facts),
        lambda: report_gpus(config.device, rank_env),
    )
    group.recovery_hint = "give the same command again"
    with join_with_watchdog(group, compute.device, TIMEOUT) as watchdog:
        return evaluate_on_rank(config, compute, group, watchdog)


def choose_device(config: EvaluateConfig, rank_env: RankEnv, facts: Sequence[RankReport]) -> Compute:
    """Return the device of this rank. `facts` describe the devices of all ranks. Raises LabError."""
    if config.devices is not None and config.devices != rank_env.local_world:
        raise BadInput(f"devices={config.devices}: but {rank_env.local_world} ranks were started on this machine")
    hardware = HardwareConfig(
        device=config.device,
        precision=config.precision,
        tf32=config.tf32,
        attention=config.attention,
        compile=False,
    )
    gpu = choose_gpu(facts, rank_env, section="") if facts else None
    return set_up_device(hardware, rank_env.local_rank, rank_env.local_world, section="", gpu=gpu)


def evaluate_on_rank(config: EvaluateConfig, compute: Compute, group: ProcessGroup, watchdog: Watchdog) -> int:
    """Evaluate after the rendezvous. A lost rank is raised as PeerLost, a lack of memory as BadEnvironment."""
    try:
        return evaluate_tasks(config, compute, group, watchdog)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise group.to_peer_lost(error, 0) from error
        raise BadEnvironment(
            f"batch_tokens={config.batch_tokens or 'null'}: out of memory; a smaller value changes only the speed"
        ) from None


def evaluate_tasks(config: EvaluateConfig, compute: Compute, group: ProcessGroup, watchdog: Watchdog) -> int:
    """Load the model and all data first, so that errors come early; then evaluate the tasks in order."""
    with group.report_once():
        group.check_same_on_all_ranks("config", dict(schema.iter_values(config)))
        check_output_file("out", config.out, links=False)
        trained = load_trained(config, compute.device)
        attention_used(config.attention, compute, trained.model.config, section="")
        out = output_path(config, trained)
        check_output_file("run", None if out is None or config.out else str(out), links=False)
        group.check_same_on_all_ranks("model", {"name": trained.name, "step": trained.step})
    tasks = [prepare_task(name, config, trained, compute, group) for name in choose_tasks(config, trained)]
    with group.report_once():
        group.check_same_on_all_ranks("data set", {task.name: task.data for task in tasks})
    report = Report(trained, out, len(tasks))
    run_tasks(report, tasks, config, compute, group, watchdog)
    group.all_reduce_max(0)  # wait until rank 0 has written: after that a rank may end
    print_result(config.format, report, print_report)
    return STOPPED if report.stopped_by else 0


def run_tasks(
    report: Report,
    tasks: Sequence[EvalTask],
    config: EvaluateConfig,
    compute: Compute,
    group: ProcessGroup,
    watchdog: Watchdog,
) -> None:
    """Evaluate the tasks in order until a signal arrives. Each result is appended to the file at once."""
    with StopFlag() as flag:

        def should_stop() -> bool:
            watchdog.heartbeat(0)
            return group.all_reduce_max(flag.level) > 0

        for task in tasks:
            started = time.monotonic()
            if group.is_rank0:
                print(f"evaluating {task.name}: {task.size}", file=sys.stderr, flush=True)
            try:
                metrics = task.evaluate(report.trained.model, should_stop)
            except Stopped:
                report.stopped_by = flag.reason or "a signal to another rank"
                return
            result = TaskResult(task, metrics, time.monotonic() - started)
            record = build_record(result, config, report.trained, compute, group)
            report.results.append((result, record))
            if report.out and group.is_rank0:
                report.out.parent.mkdir(parents=True, exist_ok=True)
                append_line(report.out, json.dumps(record | {"seconds": round(result.seconds, 3)}))


def print_report(report: Report) -> None:
    """Print a table of the results, where they are stored, and what stopped the evaluation."""
    results = [result for result, _ in report.results]
    print_text(format_results(results, report.trained) if results else "no task was completed")
    print_text(f"appended to {report.out}" if report.out else "not saved; out=FILE appends the results to a file")
    if report.stopped_by:
        print_text(f"{report.stopped_by}: stopped after {len(results)} of {report.n_tasks} tasks")


def choose_tasks(config: EvaluateConfig, trained: TrainedModel) -> list[TaskName]:
    """Return the tasks of the config, each once. Imported weights have no loss without a data set."""
    names = list(dict.fromkeys(config.eval.tasks))
    if "loss" in names and trained.run is None and not config.has_data:
        logger.info(f"note: no loss: {trained.name} has no data set; data=NAME chooses one")
        names.remove("loss")
    return names


def output_path(config: EvaluateConfig, trained: TrainedModel) -> Path | None:
    """Return the file that results are appended to, or None."""
    return Path(config.out) if config.out else trained.run.path / FILE if trained.run else None


def prepare_task(
    name: TaskName, config: EvaluateConfig, trained: TrainedModel, compute: Compute, group: ProcessGroup
) -> EvalTask:
    """Read the data of a task, on rank 0 first. Raises BadInput, BadData and BadEnvironment, on all ranks."""
    if name == "loss":
        return prepare_loss_task(config, trained, compute, group)
    benchmark = group.rank0_first(lambda: load_benchmark(name, config.eval, config.eval.limit))
    with group.report_once():
        evaluation = TaskEvaluation(benchmark, trained.tokenizer, compute, group, config.batch_tokens)
    return EvalTask(name, evaluation, len(benchmark.documents), fingerprint(benchmark))


def prepare_loss_task(config: EvaluateConfig, trained: TrainedModel, compute: Compute, group: ProcessGroup) -> EvalTask:
    """Return the loss on the validation split of the config's data set, or of the run's."""
    own = config.data if config.has_data or trained.run is None else trained.run.read_config().data
    dataset = group.rank0_first(lambda: prepare_if_small(own))
    with group.report_once():
        if dataset.tokenizer.tokens != trained.tokenizer.tokens:
            ours, theirs = (tokenizer.spec()["kind"] for tokenizer in (trained.tokenizer, dataset.tokenizer))
            raise BadData(
                f"data={own.name}: its {len(dataset.tokenizer.tokens)} tokens ({theirs}) aren't the model's "
                f"{len(trained.tokenizer.tokens)} ({ours}); evaluate on text prepared with the model's tokenizer"
            )
        block_size = trained.model.config.block_size
        tokens = config.eval.limit and min(config.eval.limit * block_size, MOST_TOKENS)
        loss = LossEvaluation(dataset, EvalConfig(tokens=tokens, train=False), block_size, compute, group)

    def evaluate(model: GPT, should_stop: Callable[[], bool]) -> dict[str, Metric]:
        losses = loss(model, should_stop)
        values = {
            "val_loss": losses["val_loss"],
            "perplexity": bounded_exp(losses["val_loss"]),
            "bits_per_byte": losses["val_bpb"],
        }
        return {name: Metric(value) for name, value in values.items()}

    measurement = to_dict(describe_measurement(loss, dataset))
    return EvalTask("loss", evaluate, len(loss.windows["val"]), dataset.fingerprint, measurement)


def build_record(
    result: TaskResult, config: EvaluateConfig, trained: TrainedModel, compute: Compute, group: ProcessGroup
) -> dict[str, Any]:
    """Return a line of evaluations.jsonl without the time. Standard errors are named as in lm-evaluation-harness."""
    metrics = {name: metric.value for name, metric in result.metrics.items()}
    errors = {f"{name}_stderr": m.stderr for name, m in result.metrics.items() if m.stderr is not None}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": trained.name,
        "step": trained.step,
        "sha256": read_checkpoint_digest(trained),
        "task": result.task.name,
        "metrics": metrics | errors,
        "documents": result.task.documents,
        "limit": config.eval.limit,
        "data": result.task.data,
        "tokenizer": spec_digest(trained.tokenizer.spec()),
        **({MEASUREMENT_KEY: result.task.measurement} if result.task.measurement else {}),
        "precision": compute.precision,
        **({"tf32": config.tf32} if compute.device.type == "cuda" else {}),
        "device": compute.name,
        "ranks": group.world,
    }


def read_checkpoint_digest(trained: TrainedModel) -> str | None:
    """Return the sha256 of the checkpoint's manifest, which covers its files; None without a run."""
    if trained.run is None or trained.step is None:
        return None
    try:
        return read_json(trained.run.checkpoints.path(trained.step) / "manifest.json").get("sha256")
    except BadCheckpoint:
        return None  # the run, still in training, has removed it


def format_results(results: list[TaskResult], trained: TrainedModel) -> str:
    """Return a table with a row per metric."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        rate = result.task.documents / max(result.seconds, 1e-9)
        facts = (result.task.size, f"{result.seconds:.1f}", f"{rate:.3g}")
        for name, metric in result.metrics.items():
            error = "" if metric.stderr is None else f" ± {metric.stderr:.4g}"
            rows.append((result.task.name, name, f"{metric.value:.6g}{error}", *facts))
    where = trained.name if trained.step is None else f"{trained.name}, step {trained.step:,}"
    return format_table(where, ("task", "metric", "value", "over", "seconds", "per second"), rows)
