"""Log-likelihoods of continuations of contexts, in batches.

Token for token they are those of lm-evaluation-harness: contexts are cut on the left to what the model sees, and a
longer continuation is scored in windows. Unlike there, continuations of one context (HellaSwag's endings) share its
computation, and logits are computed only for tokens of continuations.
B batch, T time, C channels, N tokens of continuations.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanogpt import tokenizer as tokenizers
from nanogpt.device import Compute
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.evaluation.loss import Stopped
from nanogpt.model.branches import build_branches
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import rows_per_chunk
from nanogpt.tokenizer import Tokenizer

CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 32_768  # per forward pass, padding included


class Request(NamedTuple):
    """Token ids of a context, at least one, and of the continuations to score after it."""

    context: list[int]
    continuations: list[list[int]]


class Score(NamedTuple):
    """Score of a continuation."""

    log_likelihood: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """Every token is the likeliest one."""


def build_request(tokenizer: Tokenizer, context: str, continuations: Sequence[str]) -> Request:
    """Encode context and continuation as one text, and split the ids where those of the context alone end.

    Spaces at the end of the context belong to the continuations. An empty context is the start of a document
    (`tokenizers.start_ids`). Raises BadInput naming characters that the vocabulary lacks.
    """
    kept = context.rstrip()
    before: list[int] = tokenizer.encode(kept).tolist() if kept else []
    wholes = (tokenizer.encode(context + continuation).tolist() for continuation in continuations)
    return Request(before or tokenizers.start_ids(tokenizer), [whole[len(before) :] for whole in wholes])


@dataclass(frozen=True)
class PackedRow:
    """A sequence of a forward pass: a context, then branches that don't attend to each other."""

    context: list[int]
    branches: list[list[int]]
    owners: list[int]
    """Index, among all continuations, of the one that each branch is, or is a window of."""

    @property
    def length(self) -> int:
        """Number of positions. The last token of a branch is only a target."""
        return len(self.context) + sum(len(branch) - 1 for branch in self.branches)


@torch.inference_mode()
def score(
    model: GPT,
    requests: Sequence[Request],
    compute: Compute,
    group: ProcessGroup,
    batch_tokens: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[Score]]:
    """Return the scores of every request's continuations, on all ranks, bitwise the same on any number of them.

    Raises Stopped between batches once `should_stop`, a collective, returns True.
    """
    default = CPU_BATCH_TOKENS if compute.device.type == "cpu" else BATCH_TOKENS
    batches = list(make_batches(build_rows(requests, model.config.block_size), batch_tokens or default))
    firsts = np.cumsum([0, *(sum(len(row.branches) for row in batch) for batch in batches)])
    found = torch.zeros(2, int(firsts[-1]), dtype=torch.float64)  # a rank fills in the branches of its batches
    for first in range(0, len(batches), group.world):
        if should_stop():
            raise Stopped
        number = first + group.rank
        if number < len(batches):
            found[:, firsts[number] : firsts[number + 1]] = score_batch(model, batches[number], compute)
    owners = [owner for batch in batches for row in batch for owner in row.owners]
    return merge_scores(requests, owners, *group.all_reduce_sum(found).tolist())


def merge_scores(
    requests: Sequence[Request], owners: list[int], nats: list[float], greedy: list[float]
) -> list[list[Score]]:
    """Merge the scores of branches to those of continuations."""
    parts: list[list[int]] = [[] for request in requests for _ in request.continuations]
    for branch, owner in enumerate(owners):
        parts[owner].append(branch)
    scores = (
        Score(math.fsum(nats[branch] for branch in part), all(greedy[branch] for branch in part)) for part in parts
    )
    return [[next(scores) for _ in request.continuations] for request in requests]


def build_rows(requests: Sequence[Request], block_size: int) -> Iterator[PackedRow]:
    """Yield the sequences to compute. If the context must be cut, each continuation gets a separate sequence."""
    first = 0
    for context, continuations in requests:
        owners = [first + i for i, continuation in enumerate(continuations) if continuation]
        kept = [continuation for continuation in continuations if continuation]
        if kept and len(context) + max(map(len, kept)) - 1 <= block_size:
            yield PackedRow(context, kept, owners)
        else:
            for owner, continuation in zip(owners, kept, strict=True):
                yield from split_windows(context, continuation, owner, block_size)
        first += len(continuations)


def split_windows(context: list[int], continuation: list[int], owner: int, block_size: int) -> Iterator[PackedRow]:
    """Yield windows of `block_size` targets after the context that fits: one token, before the last window more."""
    whole = context + continuation
    for first in range(len(context), len(whole), block_size):
        end = min(first + block_size, len(whole))
        yield PackedRow(whole[max(0, end - 1 - block_size) : first], [whole[first:end]], [owner])


def make_batches(rows: Iterator[PackedRow], batch_tokens: int) -> Iterator[list[PackedRow]]:
    """Batch rows of similar length, the longest first, so that a lack of memory shows at once."""
    batch: list[PackedRow] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if batch and (len(batch) + 1) * batch[0].length > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def score_batch(model: GPT, batch: list[PackedRow], compute: Compute) -> Tensor:
    """Return (2, branches): the log-likelihood of each branch, and 1.0 if all its tokens are the likeliest."""
    ids, positions, branch = pack_rows(batch)
    targets = np.concatenate([part for row in batch for part in row.branches])
    lengths = np.array([len(part) for row in batch for part in row.branches])
    device = compute.device
    shared = any(len(row.branches) > 1 for row in batch)
    layout = build_branches(*(torch.from_numpy(array).to(device) for array in (positions, branch))) if shared else None
    with compute.evaluation():
        x = model.features(torch.from_numpy(ids).to(device), branches=layout)  # (B, T, C)
        chosen = x.flatten(0, 1)[torch.from_numpy(find_predicting_positions(batch, ids.shape[1])).to(device)]  # (N, C)
        likelihoods, hits = score_tokens(model, chosen, torch.from_numpy(targets).to(device))
    starts = np.cumsum(lengths) - lengths
    nats = np.add.reduceat(likelihoods.cpu().double().numpy(), starts)
    return torch.from_numpy(np.stack([nats, np.minimum.reduceat(hits.cpu().double().numpy(), starts)]))


def pack_rows(batch: list[PackedRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (B, T) ids, positions and branch numbers (0: the context); padding is one more branch."""
    ids, positions, branches = np.zeros((3, len(batch), max(row.length for row in batch)), np.int64)
    for b, row in enumerate(batch):
        n = end = len(row.context)
        ids[b, :n], positions[b, :n] = row.context, np.arange(n)
        for number, branch in enumerate(row.branches, 1):
            start, end = end, end + len(branch) - 1
            ids[b, start:end], positions[b, start:end] = branch[:-1], n + np.arange(end - start)
            branches[b, start:end] = number
        branches[b, end:] = len(row.branches) + 1
    return ids, positions, branches


def find_predicting_positions(batch: list[PackedRow], width: int) -> np.ndarray:
    """Return (N,) indices into the flattened (B, T): the position before each token of a branch."""
    found: list[int] = []
    for b, row in enumerate(batch):
        end = b * width + len(row.context)
        for branch in row.branches:
            found += [b * width + len(row.context) - 1, *range(end, end + len(branch) - 1)]
            end += len(branch) - 1
    return np.array(found)


def score_tokens(model: GPT, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-likelihoods in nats, fp32, and whether no id is likelier: (N, C), (N,) ids -> (N,), (N,) bool.

    Of equally likely ids the first counts as the likeliest.
    """
    n = rows_per_chunk(model.lm_head.weight)
    likelihoods: list[Tensor] = []
    hits: list[Tensor] = []
    for part, target in zip(x.split(n), targets.split(n), strict=True):
        logits = model.logits(part).float()
        likelihoods.append(logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=1))
        hits.append(logits.argmax(dim=1) == target)
    return torch.cat(likelihoods), torch.cat(hits)
