"""How likely a model finds continuations of contexts, many at a time.

Token for token these are lm-evaluation-harness' log-likelihoods: contexts are cut from the left to what the model
sees, and a continuation that is longer than that is read in windows of which only the last looks further back. Unlike
there, the continuations of one context (HellaSwag's endings) share its computation, and logits are computed for the
tokens of continuations alone. B batch, T time, C channels, N tokens of continuations.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanogpt.device import Compute
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.evaluation.loss import Stopped
from nanogpt.model.branches import build_branches
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import rows_per_chunk

CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 32_768  # per forward pass, padding included


class Request(NamedTuple):
    """Token ids of a context, at least one, and of the continuations to be scored after it."""

    context: list[int]
    continuations: list[list[int]]


class Score(NamedTuple):
    """What a model makes of one continuation."""

    log_likelihood: float
    """Of all its tokens together, in nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest where it stands."""


@dataclass(frozen=True)
class PackedRow:
    """One sequence of a forward pass: a context, then branches that don't see each other."""

    context: list[int]
    branches: list[list[int]]
    places: list[int]
    """The continuation each branch is of, or is a window of, by its number among all."""

    @property
    def length(self) -> int:
        """Positions: the last token of a branch is only a target."""
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
    """The scores of every request's continuations, the same to a bit on any number of ranks, on all of them.

    Raises Stopped between batches once `should_stop`, which all ranks call together, says so.
    """
    usual = CPU_BATCH_TOKENS if compute.device.type == "cpu" else BATCH_TOKENS
    batches = list(make_batches(build_rows(requests, model.config.block_size), batch_tokens or usual))
    firsts = np.cumsum([0, *(sum(len(row.branches) for row in batch) for batch in batches)])
    found = torch.zeros(2, int(firsts[-1]), dtype=torch.float64)  # each rank adds the branches of its batches
    for first in range(0, len(batches), group.world):
        if should_stop():
            raise Stopped
        number = first + group.rank
        if number < len(batches):
            found[:, firsts[number] : firsts[number + 1]] = score_batch(model, batches[number], compute)
    places = [place for batch in batches for row in batch for place in row.places]
    return merge_scores(requests, places, *group.all_reduce_sum(found).tolist())


def merge_scores(
    requests: Sequence[Request], places: list[int], nats: list[float], greedy: list[float]
) -> list[list[Score]]:
    """The scores of branches put together to those of continuations."""
    parts: list[list[int]] = [[] for request in requests for _ in request.continuations]
    for branch, place in enumerate(places):
        parts[place].append(branch)
    scores = iter(
        Score(math.fsum(nats[branch] for branch in mine), all(greedy[branch] for branch in mine)) for mine in parts
    )
    return [[next(scores) for _ in request.continuations] for request in requests]


def build_rows(requests: Sequence[Request], block_size: int) -> Iterator[PackedRow]:
    """The sequences to compute. Only where the context must be cut does each continuation get one of its own."""
    place = 0
    for context, continuations in requests:
        places = [place + i for i, continuation in enumerate(continuations) if continuation]
        kept = [continuation for continuation in continuations if continuation]
        if kept and len(context) + max(map(len, kept)) - 1 <= block_size:
            yield PackedRow(context, kept, places)
        else:
            for number, continuation in zip(places, kept, strict=True):
                yield from split_windows(context, continuation, number, block_size)
        place += len(continuations)


def split_windows(context: list[int], continuation: list[int], place: int, block_size: int) -> Iterator[PackedRow]:
    """`block_size` targets at a time, each with all the context that fits: one token, more before the last few."""
    whole = context + continuation
    for first in range(len(context), len(whole), block_size):
        end = min(first + block_size, len(whole))
        yield PackedRow(whole[max(0, end - 1 - block_size) : first], [whole[first:end]], [place])


def make_batches(rows: Iterator[PackedRow], batch_tokens: int) -> Iterator[list[PackedRow]]:
    """Rows of similar length together, the longest first: what doesn't fit in memory fails at once."""
    batch: list[PackedRow] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if batch and (len(batch) + 1) * batch[0].length > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def score_batch(model: GPT, batch: list[PackedRow], compute: Compute) -> Tensor:
    """(2, branches): log-likelihood of each branch, and 1.0 where all its tokens are the likeliest."""
    ids, positions, branch = pack_rows(batch)
    targets = np.concatenate([part for row in batch for part in row.branches])
    lengths = np.array([len(part) for row in batch for part in row.branches])
    device = compute.device
    shared = any(len(row.branches) > 1 for row in batch)
    layout = build_branches(*(torch.from_numpy(one).to(device) for one in (positions, branch))) if shared else None
    with compute.evaluation():
        x = model.features(torch.from_numpy(ids).to(device), branches=layout)  # (B, T, C)
        chosen = x.flatten(0, 1)[torch.from_numpy(predicting_positions(batch, ids.shape[1])).to(device)]  # (N, C)
        likelihoods, hits = token_scores(model, chosen, torch.from_numpy(targets).to(device))
    starts = np.cumsum(lengths) - lengths
    nats = np.add.reduceat(likelihoods.cpu().double().numpy(), starts)
    return torch.from_numpy(np.stack([nats, np.minimum.reduceat(hits.cpu().double().numpy(), starts)]))


def pack_rows(batch: list[PackedRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, T) ids, positions, and numbers of branches (0: the context), padded on the right as if with a branch."""
    ids, positions, branches = np.zeros((3, len(batch), max(row.length for row in batch)), np.int64)
    for b, row in enumerate(batch):
        n = end = len(row.context)
        ids[b, :n], positions[b, :n] = row.context, np.arange(n)
        for number, branch in enumerate(row.branches, 1):
            at, end = end, end + len(branch) - 1
            ids[b, at:end], positions[b, at:end], branches[b, at:end] = branch[:-1], n + np.arange(end - at), number
        branches[b, end:] = len(row.branches) + 1
    return ids, positions, branches


def predicting_positions(batch: list[PackedRow], width: int) -> np.ndarray:
    """(N,) places in the flattened (B, T): before each token of a branch; that before its first ends the context."""
    places: list[int] = []
    for b, row in enumerate(batch):
        end = b * width + len(row.context)
        for branch in row.branches:
            places += [b * width + len(row.context) - 1, *range(end, end + len(branch) - 1)]
            end += len(branch) - 1
    return np.array(places)


def token_scores(model: GPT, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) features, (N,) ids -> (N,) their log-likelihood in nats, fp32, (N,) whether none is likelier.

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
