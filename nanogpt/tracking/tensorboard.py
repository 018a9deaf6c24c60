"""TensorBoard: event files in the run directory, rewritten from metrics.jsonl at every start."""

import json
import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from nanogpt.entry_names import parse_sample_step
from nanogpt.files import list_entries, read_text
from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import RunMetadata


class TensorBoard:
    """The event files of a run, in `tensorboard/`."""

    def __init__(self, metadata: RunMetadata) -> None:
        self.metadata = metadata
        self.samples: set[int] = set()

    def start(self) -> int:
        folder = self.metadata.path / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)  # may hold steps after the checkpoint of a killed start
        self.writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10)
        self.writer.add_text("config", f"```json\n{json.dumps(self.metadata.config, indent=1)}\n```")
        for file in list_entries(self.metadata.path / "samples"):
            if (step := parse_sample_step(file.name)) is not None:
                self.log_sample(step, read_text(file, "replace"))
        return -1

    def log_row(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def log_sample(self, step: int, text: str) -> None:
        if step in self.samples:
            return
        self.samples.add(step)
        self.writer.add_text("sample", f"```\n{text}\n```", step)

    def finish(self, state: str, picture: Path | None) -> None:
        self.writer.close()

    def abandon(self) -> None:
        pass
