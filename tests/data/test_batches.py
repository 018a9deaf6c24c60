"""Batches are windows of the text, targets one to the right."""

import threading
from collections.abc import Callable

import pytest
import torch

from nanogpt.config import TrainConfig
from nanogpt.data.batches import Batch, TrainBatches, evaluation_windows, read_host_windows, to_inputs_and_targets
from nanogpt.data.dataset import Split
from nanogpt.data.prepare import prepare
from nanogpt.errors import BadData

CPU = torch.device("cpu")


def test_targets_are_the_next_tokens(config: Callable[..., TrainConfig]) -> None:
    built = config(**{"hardware.micro_batch_size": 2})
    dataset = prepare(built.data)
    tokens = torch.from_numpy(dataset.train.read(0, 0, dataset.train.n_tokens))
    windows = tokens.unfold(0, 17, 1).tolist()
    batches = list(TrainBatches(dataset.train, built, CPU).micro_batches(5000))
    assert len(batches) == 4
    for x, y, keys in batches:
        assert keys is not None and keys.shape == (2,)
        assert x.shape == y.shape == (2, 16) and x.dtype == torch.int64
        assert (x[:, 1:] == y[:, :-1]).all()
        for i in range(2):
            assert [*x[i].tolist(), int(y[i, -1])] in windows


def test_micro_batches_are_slices_of_the_same_samples(config: Callable[..., TrainConfig]) -> None:
    split = prepare(config().data).train
    whole = [
        TrainBatches(split, config(**{"hardware.micro_batch_size": n}), CPU).micro_batches(4096 - 3) for n in (8, 4, 1)
    ]
    inputs = [[torch.cat(column) for column in zip(*batches, strict=True)] for batches in whole]
    for ids, targets, keys in inputs[1:]:
        assert (ids == inputs[0][0]).all() and (targets == inputs[0][1]).all() and (keys == inputs[0][2]).all()


@pytest.mark.parametrize(("world", "micro"), [(2, 4), (2, 1), (4, 1), (8, 1)])
def test_ranks_share_the_samples_of_a_step(config: Callable[..., TrainConfig], world: int, micro: int) -> None:
    """Together the ranks have each sample of the step once, in micro-batches dealt round."""
    split = prepare(config().data).train
    (whole,) = TrainBatches(split, config(), CPU).micro_batches(800)
    built = config(**{"hardware.micro_batch_size": micro})
    dealt = [list(TrainBatches(split, built, CPU, rank, world).micro_batches(800)) for rank in range(world)]
    assert {len(batches) for batches in dealt} == {8 // world // micro}
    rounds = [batch for turn in zip(*dealt, strict=True) for batch in turn]
    assert (torch.cat([batch.ids for batch in rounds]) == whole.ids).all()
    assert whole.keys is not None
    assert (torch.cat([batch.keys for batch in rounds if batch.keys is not None]) == whole.keys).all()


def equal(a: Batch, b: Batch) -> bool:
    assert a.keys is not None and b.keys is not None
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None)


def test_batches_made_ahead_are_the_same_in_any_order(config: Callable[..., TrainConfig]) -> None:
    """Of rank 1 of 2, over the border of what is placed at once: in order, back, far ahead, and left half way."""
    built = config(**{"hardware.micro_batch_size": 2})
    split = prepare(built.data).train
    plain, ahead = (TrainBatches(split, built, CPU, 1, 2, prefetch=threaded) for threaded in (False, True))
    for first in (4080, 4088, 4096, 4104, 4088, 4096, 0, 8, 800):
        for expected, found in zip(plain.micro_batches(first), ahead.micro_batches(first), strict=True):
            assert equal(expected, found)
    next(ahead.micro_batches(808))
    assert equal(next(ahead.micro_batches(808)), next(plain.micro_batches(808)))
    ahead.close()


def test_the_thread_of_batches_tells_its_errors_and_ends(config: Callable[..., TrainConfig]) -> None:
    """An error is raised for the batch it is about, in the caller; close leaves no thread behind."""
    built = config()
    batches = TrainBatches(prepare(built.data).train, built, CPU, prefetch=True)
    real, makers = batches.locate_samples, set[str]()

    def locate(first: int) -> list[tuple[int, int]]:
        makers.add(threading.current_thread().name)
        if first == 16:
            raise BadData("cut off")
        return real(first)

    batches.locate_samples = locate
    assert [len(list(batches.micro_batches(first))) for first in (0, 8)] == [1, 1]
    with pytest.raises(BadData, match="cut off"):
        next(batches.micro_batches(16))
    assert equal(next(batches.micro_batches(24)), batches.read_batch(24))
    names = {name for name in makers if name.startswith("batches")}
    assert len(names) == 1
    batches.close()
    assert names.isdisjoint(thread.name for thread in threading.enumerate())


def test_evaluation_windows_are_disjoint_and_whole(config: Callable[..., TrainConfig]) -> None:
    split = prepare(config().data).val
    starts = evaluation_windows(split, 16, None)
    x, y = to_inputs_and_targets(read_host_windows(split, starts, 16, CPU), CPU)
    n = (split.n_tokens - 1) // 16 * 16
    tokens = torch.from_numpy(split.read(0, 0, split.n_tokens))
    assert (x.flatten() == tokens[:n]).all() and (y.flatten() == tokens[1 : n + 1]).all()
    shards = split.shards
    many = Split("val", shards * 3, split.vocab_size)
    offsets = [offset for _, offset in starts]
    assert evaluation_windows(many, 16, None) == [(shard, offset) for shard in range(3) for offset in offsets]
    some = evaluation_windows(split, 16, 100)
    assert len(some) == 7 and set(some) <= set(starts) and some[-1][1] > split.n_tokens // 2


def test_too_little_data_says_how_much_is_needed(config: Callable[..., TrainConfig]) -> None:
    dataset = prepare(config().data)
    long = config(**{"model.block_size": 16384, "training.batch_tokens": 16384})
    with pytest.raises(BadData, match=r"model.block_size=16384 needs 32768"):
        TrainBatches(dataset.train, long, CPU)
    with pytest.raises(BadData, match=r"model.block_size=16384 needs 16385"):
        evaluation_windows(dataset.val, 16384, None)
    assert isinstance(dataset.val, Split)
