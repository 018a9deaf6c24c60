"""TensorBoard: event files in the run directory, rewritten from metrics.jsonl at every start."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from nanogpt.entry_names import parse_sample_step
from nanogpt.files import list_entries, mtime, read_bytes, read_text
from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import RunMetadata

COMPARED = ("val_loss", "val_bpb", "loss")  # metrics in the table of hyperparameters


class TensorBoard:
    """The event files of a run, in `tensorboard/`."""

    def __init__(self, metadata: RunMetadata) -> None:
        self.metadata = metadata
        self.samples: set[int] = set()
        self.step = 0
        """The last step that was logged."""

    def start(self) -> int:
        folder = self.metadata.path / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)  # may hold steps after the checkpoint of a killed start
        self.writer = SummaryWriter(str(folder), purge_step=0, flush_secs=10)
        self.writer.add_text("config", f"```json\n{json.dumps(self.metadata.config, indent=1)}\n```")
        if self.metadata.diff:
            self.writer.add_text("uncommitted changes", f"````diff\n{self.metadata.diff}\n````")
        for part in hparams(flatten(self.metadata.config), dict.fromkeys(COMPARED, 0.0)):
            self.writer._get_file_writer().add_summary(part)  # pyright: ignore[reportPrivateUsage]
        for file in list_entries(self.metadata.path / "samples"):
            if (step := parse_sample_step(file.name)) is not None:
                self.add_sample(step, read_text(file, "replace"), mtime(file))
        return -1

    def log_row(self, row: Row) -> None:
        self.step, time = int(row["step"]), row.get("time")
        for name, value in row.items():
            if name not in ("step", "time"):
                self.writer.add_scalar(name, value, self.step, walltime=time)

    def log_sample(self, step: int, text: str) -> None:
        self.add_sample(step, text, None)

    def add_sample(self, step: int, text: str, time: float | None) -> None:
        """Add a sample that was drawn at this time (None: now), once."""
        if step in self.samples:
            return
        self.samples.add(step)
        self.writer.add_text("sample", f"```\n{text}\n```", step, walltime=time)

    def finish(self, state: str, picture: Path | None) -> None:
        if picture is not None:
            self.add_image("loss_curve", read_bytes(picture))
        self.writer.close()

    def add_image(self, name: str, png: bytes) -> None:
        """Add a PNG as it is: SummaryWriter.add_image would decode and encode it."""
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self.writer._get_file_writer().add_summary(summary, self.step)  # pyright: ignore[reportPrivateUsage]

    def abandon(self) -> None:
        pass


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested values by dotted keys, lists as text, without those that are null."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        elif value is not None:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
