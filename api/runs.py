"""Train in this process, and use a trained model from Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from api.tables import to_frame
from cli.actions import train as run_train
from nanogpt.config import SampleConfig, TrainConfig, TrainedConfig
from nanogpt.device import find_device
from nanogpt.errors import STOPPED, BadInput, LabError
from nanogpt.generation.answers import encode_prompt, generate_answers
from nanogpt.generation.command import resolve_config
from nanogpt.interop.load_model import TrainedModel, load_trained
from nanogpt.metrics_file import read_rows
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import locate_run
from nanogpt.schema import from_dict
from nanogpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

UNUSED_SETTINGS = {*TrainedConfig.model_fields, "prompts", "precision", "stream", "quiet", "interactive", "out"}
"""Keys of `sample.py` that choose the model, or where texts come from and go to."""


@dataclass(frozen=True)
class Run:
    """A run directory with the model of one of its checkpoints. `load` and `train` return it."""

    path: Path
    config: TrainConfig
    trained: TrainedModel

    @property
    def model(self) -> GPT:
        """The model, in evaluation mode on its device. Called with (B, T) ids it returns (B, T, P) logits."""
        return self.trained.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer: `encode(text)` gives ids, `nanogpt.tokenizer.decode` gives text."""
        return self.trained.tokenizer

    @property
    def step(self) -> int | None:
        """The step of the checkpoint."""
        return self.trained.step

    @property
    def val_loss(self) -> float | None:
        """The checkpoint's validation loss in nats per token; None if it was not evaluated."""
        return self.trained.val_loss

    def sample(self, prompt: str = "", num_samples: int = 1, **settings: Any) -> list[str]:
        """Return `num_samples` continuations of a prompt, without the prompt.

        `settings` are keys of `sample.py`: max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop,
        seed, … The same seed gives the texts that `sample.py` prints. Raises BadInput.
        """
        if unused := sorted(settings.keys() & UNUSED_SETTINGS):
            raise BadInput(f"{unused[0]}: is for sample.py; Run.sample does not use it")
        config = resolve_config(from_dict(SampleConfig, {"prompt": prompt, "num_samples": num_samples, **settings}))
        ids = encode_prompt(self.trained, config, prompt)
        texts = [""] * num_samples
        for first in range(0, num_samples, config.batch_size):
            numbers = range(num_samples)[first : first + config.batch_size]
            for row, piece in generate_answers(self.trained, config, [ids] * len(numbers), numbers):
                texts[first + row] += piece
        return texts

    @torch.inference_mode()
    def logits(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Return (T, V) logits of a sequence of T ids, or (B, T, V) of (B, T) ids. Raises BadInput if T is too large.

        The V columns are the tokenizer's tokens; those that only pad the vocabulary are left out.
        """
        batch, length = torch.as_tensor(ids), self.model.config.block_size
        if batch.dim() not in (1, 2) or not 0 < batch.shape[-1] <= length or batch.is_floating_point():
            raise BadInput(
                f"ids: {batch.dtype}, {tuple(batch.shape)}; allowed: integers, (T,) or (B, T), T at most {length}"
            )
        batch = batch.to(self.model.lm_head.weight.device, torch.int64)
        if int(batch.min()) < 0 or int(batch.max()) >= len(self.tokenizer.tokens):
            raise BadInput(f"ids: allowed: 0 to {len(self.tokenizer.tokens) - 1}, the tokenizer's tokens")
        logits = self.model(batch if batch.dim() == 2 else batch[None])[..., : len(self.tokenizer.tokens)]
        return logits if batch.dim() == 2 else logits[0]

    def metrics(self) -> "pd.DataFrame":
        """Return the training rows of metrics.jsonl: loss, lr, grad_norm, … indexed by step, and tokens per second."""
        rows = [row for row in read_rows(self.path / "metrics.jsonl") if "loss" in row]
        speeds = {row["step"]: row for row in read_rows(self.path / "timing.jsonl")}
        return to_frame([speeds.get(row["step"], {}) | row for row in rows], "step")

    def evaluations(self) -> "pd.DataFrame":
        """Return the evaluations of metrics.jsonl: val_loss, val_bpb, train_loss, … indexed by step."""
        return to_frame([row for row in read_rows(self.path / "metrics.jsonl") if "val_loss" in row], "step")


def load(
    run: str | Path | None = None,
    checkpoint: Literal["best", "latest"] = "best",
    device: str = "auto",
    runs_dir: str | Path = "runs",
) -> Run:
    """Load a run: a folder, a name under `runs_dir`, or None for the newest.

    Raises BadInput, BadCheckpoint, BadData, BadEnvironment.
    """
    values = {"run": None if run is None else str(run), "checkpoint": checkpoint, "runs_dir": str(runs_dir)}
    config = from_dict(SampleConfig, values | {"device": device})
    trained = load_trained(config, find_device(device, "device"))
    assert trained.run is not None
    return Run(trained.run.path, trained.run.read_config(), trained)


def train(config: TrainConfig) -> Run:
    """Train, or continue, the run of a config in this process, and load its best checkpoint.

    Several ranks are started as processes of their own. Raises LabError if the run fails, KeyboardInterrupt if a
    signal stopped it; the same call continues it.
    """
    if config.dry_run or config.replay:
        raise BadInput("dry_run and replay: train no run; use train.py")
    path = locate_run(config)  # now: with new_attempt=true, afterwards this would be the attempt after it
    code = run_train(config)
    if code == STOPPED:
        raise KeyboardInterrupt(f"stopped and saved: {path}")
    if code:
        raise LabError(f"training ended with exit code {code}")
    return load(path, device=config.hardware.device)
