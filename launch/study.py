"""A study: the points of a sweep in one folder, each in a run directory named by what it changes.

The folder follows from the command, and a point's directory from its science config, so the same command, here or on a
cluster, today or tomorrow, finds what it did; a grid that has grown or was put in another order keeps its runs.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.compose import Point
from cli.overrides import LAUNCHER
from cli.sweep_request import Sweep
from nanogpt import schema
from nanogpt.config import DataConfig, TrainConfig
from nanogpt.data.folders import resolve_source
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.files import list_entries, mtime
from nanogpt.run_directory import locate, parts_of, resolve_all
from nanogpt.run_identity import digits_of, earlier_digits
from nanogpt.schema import change_policy, iter_fields

RECORDS = ".launch"  # folder in a study's that holds what was submitted
LONGEST = 100  # characters of a name before its signature


@dataclass(frozen=True)
class Member:
    """One point: the directory its run has or will have, and its config."""

    run: Path
    config: TrainConfig


@dataclass(frozen=True)
class Study:
    """A folder and the points in it."""

    path: Path
    members: list[Member]

    @property
    def records(self) -> Path:
        return self.path / RECORDS

    @property
    def logs(self) -> Path:
        return self.path / "logs"


def study_of(sweep: Sweep[TrainConfig]) -> Study:
    """The study that a sweep is. Raises BadInput for points that are the same run."""
    configs = [point.config for point in sweep.points]
    if any(config.resume.run and not config.resume.fork for config in configs):
        raise BadInput("resume.run: continues one run; it can't be a point of a sweep")
    points = resolved(sweep.points)
    path = find_folder(sweep, points[0].config)
    if (path / "config.json").exists():
        raise BadInput(f"name={one_line(path.name)}: {one_line(path)} is a run, not a study; give another name")
    refuse_twins(sweep, [digits_of(point.config) for point in points])
    return Study(path, members_of(path, points))


def resolved(points: Sequence[Point[TrainConfig]]) -> list[Point[TrainConfig]]:
    """Return the points with the digests of their sources; each source is read once."""
    sources: dict[str, DataConfig] = {}
    for point in points:
        data = point.config.data
        sources.setdefault(data.model_dump_json(), data)
    found = {key: resolve_source(data) for key, data in sources.items()}
    return [
        Point(
            resolve_all(point.config.model_copy(update={"data": found[point.config.data.model_dump_json()]})),
            point.changes,
        )
        for point in points
    ]


def members_of(path: Path, points: Sequence[Point[TrainConfig]]) -> list[Member]:
    """Points of the study in a folder, each with the directory that its run has there or will have."""
    there = [entry.name for entry in list_entries(path)]
    known = {parts[1]: (parts[0], path / one) for one in sorted(there) if (parts := parts_of(one))}
    runs = {digits: run for digits, (_, run) in known.items()}
    short = short_names(swept_keys(points))
    members: list[Member] = []
    for point in resolved(points):
        digits = digits_of(point.config)
        if digits not in known:
            digits = earlier_digits(point.config, runs) or digits
        name = known[digits][0] if digits in known else point_name(point.config, point.changes, short)
        config = point.config.model_copy(update={"runs_dir": str(path), "name": name})
        members.append(Member(path / f"{name}-{digits}", config))
    return [latest_attempt(member, there) for member in members]


def latest_attempt(member: Member, there: list[str]) -> Member:
    """The member with the directory its run is in, when there were several attempts or a new one is asked for."""
    if not member.config.new_attempt and not any(name.startswith(f"{member.run.name}-") for name in there):
        return member
    return Member(locate(member.config), member.config)


def study_of_one(config: TrainConfig) -> Study:
    """A single run as a study of its own, in its own directory."""
    config = resolve_all(config)
    run = locate(config)
    return Study(run, [Member(run, config)])


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
    """Return the given name, or `<model>-<data>-<swept keys>` and four digits of the other shared settings that can
    change results.
    """
    first = sweep.points[0].config
    swept = [key for key in swept_keys(sweep.points) if key not in sweep.keys_swept_in_files]
    base = first.name or "-".join(getattr(first, group).name for group in ("model", "data") if group not in swept)
    if first.name and "name" in sweep.shared:
        return base
    free = {key for key, field in iter_fields(TrainConfig) if change_policy(field) == "free"}
    named = {"experiment", LAUNCHER} | ({"model", "data"} if not first.name else set[str]())
    rest = sorted(f"{key}={text}" for key, text in shared.items() if key not in named and is_science(key, free))
    digits = [hashlib.sha256("\n".join(rest).encode()).hexdigest()[:4]] if rest else []
    return clean("-".join(filter(None, [base, *sorted(short_names(swept).values())])))[:LONGEST] + "".join(
        f"-{one}" for one in digits
    )


def is_science(key: str, free: set[str]) -> bool:
    """Whether a setting can change a result; so may every group but these."""
    return key not in free and key not in ("hardware", "tracking") and not key.startswith("hydra")


def swept_keys(points: Sequence[Point[TrainConfig]]) -> list[str]:
    """The keys in which points differ; listed points needn't all have the same."""
    return list(dict.fromkeys(key for point in points for key in point.changes))


def short_names(keys: list[str]) -> dict[str, str]:
    """`optimizer.lr` as `lr`, unless another key ends so too."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key.replace(".", "_") for key, end in zip(keys, ends, strict=True)}


def point_name(config: TrainConfig, changes: dict[str, str], short: dict[str, str]) -> str:
    """`dropout0.1-lr0.001`: the swept keys in alphabetical order with their values; `base` for a point without any."""
    values = dict(schema.iter_values(config))
    words = sorted(f"{short[key]}{shown(values.get(key, text))}" for key, text in changes.items())
    return clean("-".join(words))[:LONGEST] or "base"


def shown(value: Any) -> str:
    """A value as it is told apart from others of its kind."""
    if isinstance(value, tuple):
        return "_".join(shown(one) for one in value)  # pyright: ignore[reportUnknownVariableType]
    return "null" if value is None else f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value)


def clean(text: str) -> str:
    """Letters, digits, dot, dash, underscore: what a name may have, beginning with a letter or digit."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")


def refuse_twins(sweep: Sweep[TrainConfig], signatures: list[str]) -> None:
    """Two points that are one run would train it twice. Raises BadInput."""
    first: dict[str, int] = {}
    for number, one in enumerate(signatures):
        if one in first:
            texts = [" ".join(f"{k}={v}" for k, v in sweep.points[n].changes.items()) for n in (first[one], number)]
            raise BadInput(
                f"-m: points {first[one] + 1} and {number + 1} are the same run: {one_line(texts[0])} and "
                f"{one_line(texts[1])} give the same model, data and training"
            )
        first[one] = number


def find_study(target: str | None, runs_dir: str) -> tuple[Path, str | None]:
    """The folder with submissions that a person means, and the name of the run in it if that is meant: by a path or a
    name under `runs_dir`; with None the latest study. Raises BadInput with the nearest name.
    """
    if target is None:
        found = sorted(studies(Path(runs_dir)), key=lambda path: mtime(path / RECORDS))
        if not found:
            raise BadInput(f"runs_dir={one_line(runs_dir)}: nothing was submitted from here")
        return found[-1], None
    for path in (Path(target).resolve(), (Path(runs_dir) / target).resolve()):
        if (path / RECORDS).is_dir():
            return path, None
        if (path.parent / RECORDS).is_dir():
            return path.parent, path.name
    begun = [path for path in studies(Path(runs_dir)) if path.name.startswith(f"{target}-")]
    if len(begun) == 1:  # a run's name without its signature
        return begun[0], None
    names = [path.name for path in studies(Path(runs_dir))]
    raise BadInput(f"{one_line(target)}: not a study or run that was submitted{hint(Path(target).name, names)}")


def studies(runs_dir: Path) -> Iterator[Path]:
    """Folders under `runs_dir` from which something was submitted."""
    for path in list_entries(runs_dir):
        if (path / RECORDS).is_dir():
            yield path
