"""A study: the points of a sweep in one folder, each in a run directory named after what it changes.

The folder follows from the command and a run directory from its config, so the same command finds earlier runs again,
here or on a cluster; a grid that has grown or was reordered keeps its runs.
"""

import hashlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.compose import Point
from cli.sweep_keys import LAUNCHER
from cli.sweep_request import Sweep
from nanogpt import schema
from nanogpt.config import DataConfig, TrainConfig
from nanogpt.data.folders import resolve_source
from nanogpt.entry_names import parse_run_name
from nanogpt.errors import BadInput, Locked, hint, one_line
from nanogpt.files import hold_lock, list_entries, mtime
from nanogpt.run_directory import locate_run, resolve_config
from nanogpt.run_identity import find_earlier_digits, short_signature
from nanogpt.schema import change_policy, iter_fields

RECORDS = ".launch"  # folder in a study's that holds what was submitted
MAX_NAME_LENGTH = 100  # characters of a name before its signature


@dataclass(frozen=True)
class PlannedRun:
    """One point: the run directory it has or will have, and its config."""

    path: Path
    config: TrainConfig


@dataclass(frozen=True)
class Study:
    """A folder and the runs planned in it."""

    path: Path
    runs: list[PlannedRun]

    @property
    def records(self) -> Path:
        return self.path / RECORDS

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def plan_study(sweep: Sweep[TrainConfig]) -> Study:
    """Return the study of a sweep. Raises BadInput if two points are the same run."""
    configs = [point.config for point in sweep.points]
    if any(config.resume.run and not config.resume.fork for config in configs):
        raise BadInput("resume.run: continues one run; it can't be a point of a sweep")
    points = resolve_points(sweep.points)
    path = find_folder(sweep, points[0].config)
    if (path / "config.json").exists():
        raise BadInput(f"name={one_line(path.name)}: {one_line(path)} is a run, not a study; give another name")
    check_no_duplicates(sweep, [short_signature(point.config) for point in points])
    return Study(path, plan_runs(path, points))


def resolve_points(points: Sequence[Point[TrainConfig]]) -> list[Point[TrainConfig]]:
    """Return the points with the digests of their data sources; each source is read once."""
    sources: dict[str, DataConfig] = {}
    for point in points:
        data = point.config.data
        sources.setdefault(data.model_dump_json(), data)
    found = {key: resolve_source(data) for key, data in sources.items()}
    return [
        Point(
            resolve_config(point.config.model_copy(update={"data": found[point.config.data.model_dump_json()]})),
            point.changes,
        )
        for point in points
    ]


def plan_runs(path: Path, points: Sequence[Point[TrainConfig]]) -> list[PlannedRun]:
    """Return the planned run of each point in a study's folder."""
    short = short_names(swept_keys(points))
    resolved = resolve_points(points)
    return plan_named_runs(path, [(p.config, point_name(p.config, p.changes, short)) for p in resolved])


def plan_named_runs(path: Path, runs: Sequence[tuple[TrainConfig, str]]) -> list[PlannedRun]:
    """Return the planned run of each resolved config in a study's folder, by this name unless it has one already."""
    there = [entry.name for entry in list_entries(path)]
    known = {parts[1]: (parts[0], path / name) for name in sorted(there) if (parts := parse_run_name(name))}
    earlier = {digits: run for digits, (_, run) in known.items()}
    planned_runs: list[PlannedRun] = []
    for config, new_name in runs:
        digits = short_signature(config)
        if digits not in known:
            digits = find_earlier_digits(config, earlier) or digits
        name = known[digits][0] if digits in known else new_name
        config = config.model_copy(update={"runs_dir": str(path), "name": name})
        planned_runs.append(PlannedRun(path / f"{name}-{digits}", config))
    return [latest_attempt(planned, there) for planned in planned_runs]


def latest_attempt(planned: PlannedRun, there: list[str]) -> PlannedRun:
    """Return the run in its latest directory, or in a new one for new_attempt=true."""
    if not planned.config.new_attempt and not any(name.startswith(f"{planned.path.name}-") for name in there):
        return planned
    return PlannedRun(locate_run(planned.config), planned.config)


def with_fixed_attempt(planned: PlannedRun) -> PlannedRun:
    """Return the run with its attempt fixed: the config is read again at each restart."""
    planned.path.mkdir(parents=True, exist_ok=True)
    parts = parse_run_name(planned.path.name)
    attempt = {"new_attempt": False, "attempt": parts[2] if parts else 1}
    return PlannedRun(planned.path, planned.config.model_copy(update=attempt))


def plan_single_run(config: TrainConfig) -> Study:
    """Return a study with one run, in the run's own directory."""
    config = resolve_config(config)
    run = locate_run(config)
    return Study(run, [PlannedRun(run, config)])


def find_folder(sweep: Sweep[TrainConfig], first: TrainConfig) -> Path:
    """Return the study's folder; `first` is the resolved config of its first point.

    Its name has files by their content, unless only a folder from when it had them by their path is there.
    """
    contents = {"data.source": first.data.source_sha256, "init_from": first.init_from_sha256}
    shared = {key: contents.get(key) or text for key, text in sweep.shared.items()}
    path = Path(first.runs_dir) / study_name(sweep, shared)
    by_path = path.with_name(study_name(sweep, sweep.shared))
    return path if path.exists() or not by_path.exists() else by_path


def study_name(sweep: Sweep[TrainConfig], shared: Mapping[str, str]) -> str:
    """Return the given name, or `<model>-<data>-<swept keys>` and four hex digits of the other shared settings that
    can change results.
    """
    first = sweep.points[0].config
    swept = [key for key in swept_keys(sweep.points) if key not in sweep.keys_swept_in_files]
    base = first.name or "-".join(getattr(first, group).name for group in ("model", "data") if group not in swept)
    if first.name and "name" in sweep.shared:
        return base
    free = {key for key, field in iter_fields(TrainConfig) if change_policy(field) == "free"}
    named = {"experiment", LAUNCHER} | ({"model", "data"} if not first.name else set[str]())
    rest = sorted(f"{key}={text}" for key, text in shared.items() if key not in named and can_change_results(key, free))
    digits = [hashlib.sha256("\n".join(rest).encode()).hexdigest()[:4]] if rest else []
    return clean_name("-".join(filter(None, [base, *sorted(short_names(swept).values())])))[:MAX_NAME_LENGTH] + "".join(
        f"-{one}" for one in digits
    )


def can_change_results(key: str, free: set[str]) -> bool:
    return key not in free and key not in ("hardware", "tracking") and not key.startswith("hydra")


def swept_keys(points: Sequence[Point[TrainConfig]]) -> list[str]:
    """Return the keys in which points differ; listed points needn't all have the same keys."""
    return list(dict.fromkeys(key for point in points for key in point.changes))


def short_names(keys: list[str]) -> dict[str, str]:
    """Return a short name per key: `lr` for `optimizer.lr`, unless another key ends the same way."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key.replace(".", "_") for key, end in zip(keys, ends, strict=True)}


def point_name(config: TrainConfig, changes: dict[str, str], short: dict[str, str]) -> str:
    """Return e.g. `dropout0.1-lr0.001`: swept keys with their values, sorted; `base` without any."""
    values = dict(schema.iter_values(config))
    words = sorted(f"{short[key]}{format_for_name(values.get(key, text))}" for key, text in changes.items())
    return clean_name("-".join(words))[:MAX_NAME_LENGTH] or "base"


def format_for_name(value: Any) -> str:
    """Return a value as it appears in the name of a run."""
    if isinstance(value, tuple):
        return "_".join(format_for_name(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return "null" if value is None else f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value)


def clean_name(text: str) -> str:
    """Return `text` with letters, digits, dots, dashes and underscores only, starting with a letter or digit."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")


def check_no_duplicates(sweep: Sweep[TrainConfig], signatures: list[str]) -> None:
    """Raise BadInput if two points are the same run: it would be trained twice."""
    first: dict[str, int] = {}
    for number, signature in enumerate(signatures):
        if signature in first:
            texts = [
                " ".join(f"{k}={v}" for k, v in sweep.points[n].changes.items()) for n in (first[signature], number)
            ]
            raise BadInput(
                f"-m: points {first[signature] + 1} and {number + 1} are the same run: {one_line(texts[0])} and "
                f"{one_line(texts[1])} give the same model, data and training"
            )
        first[signature] = number


def find_study(target: str | None, runs_dir: str) -> tuple[Path, str | None]:
    """Return the folder with submissions that `target` means, and the name of a run in it if `target` is one. `target`
    is a path or a name under `runs_dir`; None: the latest study. Raises BadInput with the nearest name.
    """
    if target is None:
        found = sorted(list_studies(Path(runs_dir)), key=lambda path: mtime(path / RECORDS))
        if not found:
            raise BadInput(f"runs_dir={one_line(runs_dir)}: nothing was submitted from here")
        return found[-1], None
    for path in (Path(target).resolve(), (Path(runs_dir) / target).resolve()):
        if (path / RECORDS).is_dir():
            return path, None
        if (path.parent / RECORDS).is_dir():
            return path.parent, path.name
    begun = [path for path in list_studies(Path(runs_dir)) if path.name.startswith(f"{target}-")]
    if len(begun) == 1:  # a run's name without its signature
        return begun[0], None
    names = [path.name for path in list_studies(Path(runs_dir))]
    raise BadInput(f"{one_line(target)}: not a study or run that was submitted{hint(Path(target).name, names)}")


def list_studies(runs_dir: Path) -> Iterator[Path]:
    """Yield the folders under `runs_dir` that have submissions."""
    for path in list_entries(runs_dir):
        if (path / RECORDS).is_dir():
            yield path


@contextmanager
def lock_search(path: Path) -> Generator[None, None, None]:
    """Create the folder of a study and be the only process that decides what is trained there. Raises Locked."""
    path.mkdir(parents=True, exist_ok=True)
    with hold_lock(path / ".trials.lock", wait=False) as mine:
        if not mine:
            raise Locked(f"{one_line(path)}: another process runs this search")
        yield
