"""Loss of a split in nats per token and bits per byte, over fixed windows. Uses no random state.

B batch, T time.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from nanogpt.config import EvalConfig
from nanogpt.data.batches import evaluation_windows, read_host_windows, to_inputs_and_targets
from nanogpt.data.dataset import Dataset
from nanogpt.device import Compute
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import BadData
from nanogpt.model.gpt import GPT

# Tokens per forward pass: fixed, so that the result doesn't depend on the training micro-batch. On a CPU fewer are
# faster, as activations stay in the cache: 222k tokens of the tiny model take 4.4 s with 2,048 and 5.9 s with 8,192.
CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 32_768
LOSS_NAMES = ("val_loss", "val_bpb", "train_loss")  # in metrics.jsonl


class Stopped(Exception):
    """The evaluation was asked to stop before it was done."""


class LossEvaluation:
    """Evaluates models on fixed windows. Ranks share the work; the result is bitwise the same on any number of them."""

    def __init__(
        self, dataset: Dataset, config: EvalConfig, block_size: int, compute: Compute, group: ProcessGroup | None = None
    ) -> None:
        self.compute, self.block_size, self.group = compute, block_size, group or ProcessGroup()
        self.windows = {"val": evaluation_windows(dataset.val, block_size, config.tokens)}
        if config.train:
            as_many = len(self.windows["val"]) * block_size
            self.windows["train"] = evaluation_windows(dataset.train, block_size, as_many)
        self.splits = {"val": dataset.val, "train": dataset.train}
        self.token_bytes = np.array([len(token) for token in dataset.tokenizer.tokens])

    @property
    def tokens(self) -> int:
        """Number of evaluated tokens, of all splits."""
        return sum(map(len, self.windows.values())) * self.block_size

    def __call__(self, model: GPT, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Return {"val_loss", "val_bpb", "train_loss"}: nats per token, bits per byte, nats per token.

        Raises Stopped between batches once `should_stop`, a collective, returns True.
        """
        val, bits = self.evaluate_split(model, "val", should_stop)
        results = {"val_loss": val, "val_bpb": bits}
        if "train" in self.windows:
            results["train_loss"], _ = self.evaluate_split(model, "train", should_stop)
        return results

    @torch.inference_mode()
    def evaluate_split(self, model: GPT, name: str, should_stop: Callable[[], bool]) -> tuple[float, float]:
        """Return (nats per token, bits per byte) over the windows of a split."""
        split, windows = self.splits[name], self.windows[name]
        tokens = CPU_BATCH_TOKENS if self.compute.device.type == "cpu" else BATCH_TOKENS
        per_batch = max(1, tokens // self.block_size)
        batches = [windows[i : i + per_batch] for i in range(0, len(windows), per_batch)]
        mine: list[torch.Tensor] = []
        # Nats and bytes of each batch; a rank fills in its batches.
        sums = torch.zeros(2, len(batches), dtype=torch.float64)
        for first in range(0, len(batches), self.group.world):
            if should_stop():
                raise Stopped
            number = first + self.group.rank
            if number < len(batches):
                ids = read_host_windows(split, batches[number], self.block_size, self.compute.device)
                x, y = to_inputs_and_targets(ids, self.compute.device)
                with self.compute.evaluation():
                    mine.append(model(x, y))
                sums[1, number] = float(self.token_bytes[ids[:, 1:].numpy()].sum())
        if mine:  # the only host sync
            sums[0, self.group.rank :: self.group.world] = torch.stack(mine).cpu().double()
        nats, n_bytes = (math.fsum(row) for row in self.group.all_reduce_sum(sums).tolist())
        if not n_bytes:
            with self.group.report_once():
                raise BadData(
                    f"the evaluated windows of the {split.name} split contain no text, only end-of-text tokens"
                )
        return nats / (len(windows) * self.block_size), nats / math.log(2) / n_bytes
