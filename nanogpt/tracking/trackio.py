"""Trackio: Hugging Face's local tracker, an SQLite file per project; `trackio show` opens it."""

from pathlib import Path
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import RunMetadata

library: Any = trackio  # optional: it may not be installed where types are checked


class Trackio:
    """A run of a project in Trackio's folder (TRACKIO_DIR)."""

    def __init__(self, metadata: RunMetadata) -> None:
        self.metadata = metadata
        self.name = f"{metadata.name}-{metadata.id[:4]}"
        self.step = self.last_before = -1
        """The last step that this start has logged, and the last that earlier starts have."""

    def start(self) -> int:
        metadata = self.metadata
        last: int | None = SQLiteStorage.get_max_step_for_run(metadata.project, self.name)
        self.run: Any = library.init(
            project=metadata.project,
            name=self.name,
            group=metadata.group,
            config=metadata.config,
            resume="allow",
            embed=False,
        )
        self.last_before = -1 if last is None else last
        return self.last_before

    def log_row(self, row: Row) -> None:
        self.step = int(row["step"])
        self.run.log({name: value for name, value in row.items() if name not in ("step", "time")}, step=self.step)

    def log_sample(self, step: int, text: str) -> None:
        if step > self.last_before:
            self.run.log({"sample": library.Markdown(f"```\n{text}\n```")}, step=step)

    def finish(self, state: str, picture: Path | None) -> None:
        if picture is not None and self.step >= 0:
            self.run.log({"loss_curve": library.Image(str(picture))}, step=self.step)
        self.run.finish()

    def abandon(self) -> None:
        pass
