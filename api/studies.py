"""The results of a study as pandas DataFrames."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.tables import to_frame
from experiments.find import find_runs
from experiments.ranking import find_varied_keys
from experiments.records import describe_run
from experiments.report import ReportData, read_study
from experiments.results import RunResult
from nanogpt.config import Against, Metric, ReportConfig
from nanogpt.errors import BadInput
from nanogpt.formatting import format_value
from nanogpt.schema import from_dict

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class StudyResults:
    """The runs of a study, or of any other folder of runs, as `nanogpt report` reads them. `study` returns it."""

    data: ReportData
    metric: Metric

    @property
    def points(self) -> "pd.DataFrame":
        """Return one row per run, indexed by its directory: state, varied keys, seed, rank, losses, time.

        `rank` counts groups of seeds from 1, within the runs that `ranking` says are comparable; it is missing for
        groups without a finished run.
        """
        varied = find_varied_keys(self.data.groups)
        rows: list[dict[str, Any]] = []
        for ranking in self.data.rankings:
            for rank, group in enumerate(ranking.groups, 1):
                values = {axis.key: as_cell(axis.value(group)) for axis in varied}
                facts = {"ranking": ranking.title, "rank": rank if group in ranking.ranked else None, **values}
                rows += [{"path": str(result.path), **facts, **describe_run(result)} for result in group.results]
        return to_frame(rows, "path")

    @property
    def best(self) -> Path | None:
        """Return the run directory with the lowest metric in the best group; None if no run has finished.

        Raises BadInput if the runs are not comparable with one another: then there is no best of all.
        """
        if len(self.data.rankings) > 1:
            titles = "; ".join(ranking.title for ranking in self.data.rankings)
            raise BadInput(f"best: not all runs are comparable: {titles}")
        ranking = self.data.rankings[0]
        if ranking.best is None:
            return None
        values = {result.path: result.value(ranking.metric) for result in ranking.best.counted}
        return min((value, path) for path, value in values.items() if value is not None)[1]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return which runs are not comparable or can't be read, and why."""
        return (*self.data.notes, *self.data.problems)

    def curves(self, key: str = "val_loss", x: Against = "steps") -> "pd.DataFrame":
        """Return one row per logged value: `path`, the position `x`, and `key`, such as loss, val_loss or lr.

        Raises BadInput if no run has logged `key`.
        """
        rows = [row for result in self.data.results for row in curve_rows(result, key, x)]
        if not rows:
            known = sorted(
                {name for result in self.data.results for row in result.train + result.evals for name in row}
            )
            raise BadInput(f"key={key}: no run logged it; allowed: {', '.join(known)}")
        return to_frame(rows, "path")


def study(*targets: str | Path, metric: Metric = "val_loss", runs_dir: str | Path = "runs") -> StudyResults:
    """Read a study: folders, names under `runs_dir` or globs; without targets the one that changed last.

    `metric` is val_loss or val_bpb at the end; best_val_loss or best_val_bpb: the lowest of a run. Raises BadInput.
    """
    values = {"targets": tuple(map(str, targets)), "metric": metric, "runs_dir": str(runs_dir)}
    config = from_dict(ReportConfig, values)
    return StudyResults(read_study(find_runs(config, latest=True), config.metric), config.metric)


def curve_rows(result: RunResult, key: str, x: Against) -> Iterator[dict[str, Any]]:
    """Yield the values of a key with their positions; none where the position is unknown."""
    rows = [row for row in (*result.train, *result.evals) if key in row]
    positions = result.x_values(rows, x) or []
    yield from ({"path": str(result.path), x: at, key: row[key]} for at, row in zip(positions, rows, strict=False))


def as_cell(value: Any) -> Any:
    """Return a value that can be compared within a column: a list as text."""
    return format_value(value) if isinstance(value, tuple | list) else value
