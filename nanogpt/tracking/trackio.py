"""Trackio: Hugging Face's local tracker, one SQLite file a project; `trackio show` opens it."""

from pathlib import Path
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import About


class Trackio:
    """A run of a project in Trackio's folder (TRACKIO_DIR)."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.name = f"{about.name}-{about.id[:4]}"

    def start(self) -> int:
        about = self.about
        last: int | None = SQLiteStorage.get_max_step_for_run(about.project, self.name)
        begin: Any = trackio.init  # pyright: ignore[reportAttributeAccessIssue] (an optional library)
        self.run: Any = begin(
            project=about.project, name=self.name, group=about.group, config=about.config, resume="allow", embed=False
        )
        return -1 if last is None else last

    def row(self, row: Row) -> None:
        self.run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def text(self, step: int, text: str) -> None:
        pass  # samples stay in the run directory

    def finish(self, state: str, picture: Path | None) -> None:
        self.run.finish()

    def abandon(self) -> None:
        pass
