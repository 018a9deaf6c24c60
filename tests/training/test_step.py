"""One step: the mean over all micro-batches, the same for any split of the batch, and guarded numbers."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nanogpt.config import TrainConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.data.prepare import prepare
from nanogpt.device import Compute, set_up_device
from nanogpt.model.gpt import GPT
from nanogpt.optim.schedule import lr_scale
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import StepMetrics, train_step

Build = Callable[..., TrainConfig]
CPU = Compute(torch.device("cpu"), "fp32", "test")


def start(config: TrainConfig) -> tuple[TrainState, TrainBatches]:
    dataset = prepare(config.data)
    compute = replace(CPU, compiles=config.hardware.must_compile)
    state = build_state(config, config.model.with_vocab(dataset.vocab_size), compute)
    return state, TrainBatches(dataset.train, config, CPU.device)


def steps(config: TrainConfig, count: int) -> tuple[TrainState, list[StepMetrics]]:
    state, batches = start(config)
    return state, [train_step(state, batches.micro_batches(state.samples), config).wait() for _ in range(count)]


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_is_one_large_batch(config: Build, micro: int) -> None:
    """Losses, gradient norms and weights of 8 sequences at once and in micro-batches, with dropout."""
    # A large eps keeps Adam from turning the rounding of a vanishing gradient into a whole step.
    same = {"model.dropout": 0.1, "optimizer.eps": 1e-3}
    whole = config(**same, **{"hardware.micro_batch_size": 8})
    split = config(**same, **{"hardware.micro_batch_size": micro})
    first, expected = steps(whole, 6)
    second, found = steps(split, 6)
    for a, b in zip(expected, found, strict=True):
        assert abs(a.loss - b.loss) < 2e-6 and abs(a.grad_norm - b.grad_norm) < 1e-4
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-5)


def test_the_loss_is_the_mean_over_all_micro_batches(config: Build) -> None:
    built = config(**{"model.dropout": 0.0, "hardware.micro_batch_size": 2})
    state, batches = start(built)
    with torch.no_grad():
        losses = [F.cross_entropy(state.model(x).flatten(0, 1), y.flatten()) for x, y, _ in batches.micro_batches(0)]
    metrics = train_step(state, batches.micro_batches(0), built).wait()
    assert abs(metrics.loss - float(torch.stack(losses).mean())) < 1e-6
    assert (state.step, state.samples) == (1, 8)


def test_gradients_are_clipped_and_the_norm_is_from_before(config: Build) -> None:
    """With a tiny clip two steps barely move; the logged norm is the unclipped one."""
    free, clipped = (config(**{"optimizer.grad_clip": clip, "model.dropout": 0.0}) for clip in (0.0, 1e-3))
    _, (metrics,) = steps(free, 1)
    _, (same,) = steps(clipped, 1)
    assert metrics.grad_norm > 0.1 and metrics.grad_norm == same.grad_norm
    state, batches = start(free)
    x, y, _ = next(batches.micro_batches(0))
    (state.model(x, y) / y.numel()).backward()
    norm = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm()
    assert metrics.grad_norm == pytest.approx(float(norm), rel=1e-5)


def test_the_learning_rate_is_the_schedules(config: Build) -> None:
    built = config(**{"schedule.warmup_steps": 3})
    _, metrics = steps(built, 8)
    assert [m.lr for m in metrics] == [1e-2 * lr_scale(s, 20, built.schedule) for s in range(8)]


def test_dropout_depends_on_seed_and_sample_alone(config: Build) -> None:
    """Drawing random numbers in between changes nothing; another seed does."""
    built = config(**{"hardware.micro_batch_size": 2})
    _, expected = steps(built, 3)
    state, batches = start(built)
    for step in range(3):
        torch.rand(step + 5)
        assert train_step(state, batches.micro_batches(state.samples), built).wait().loss == expected[step].loss
    _, other = steps(config(**{"training.seed": 7}), 3)
    assert other[0].loss != expected[0].loss


def test_bf16_on_the_cpu_learns(config: Build) -> None:
    built = config(**{"hardware.precision": "bf16"})
    compute = set_up_device(built.hardware)
    assert compute.precision == "bf16"
    dataset = prepare(built.data)
    state = build_state(built, built.model.with_vocab(dataset.vocab_size), compute)
    batches = TrainBatches(dataset.train, built, compute.device)
    losses = [float(train_step(state, batches.micro_batches(state.samples), built).wait().loss) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5
    assert all(p.dtype == torch.float32 for p in state.model.parameters())


def test_golden_losses(config: Build) -> None:
    """The first losses of a fixed run. A change here means that every result changes: intended, or a mistake?"""
    built = config(**{"data.tokenizer": "byte", "model.dropout": 0.0})
    _, metrics = steps(built, 3)
    assert [round(float(m.loss), 3) for m in metrics] == GOLDEN


GOLDEN = [5.551, 5.374, 5.157]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention": "math", "compile_mode": "reduce-overhead"}, {"activation_checkpointing": True}],
    ids=str,
)
def test_compiled_is_eager(config: Build, changes: dict[str, object], dropout: float) -> None:
    """torch.compile shares the weights and gives the same losses up to rounding, with dropout."""
    hardware = {f"hardware.{key}": value for key, value in changes.items()}
    eager = config(**{"model.dropout": dropout})
    compiled = config(**{"model.dropout": dropout, "hardware.compile": True}, **hardware)
    _, expected = steps(eager, 4)
    state, found = steps(compiled, 4)
    assert isinstance(state.model, GPT) and not isinstance(state.forward, GPT)
    for a, b in zip(expected, found, strict=True):
        assert abs(a.loss - b.loss) < 1e-5


SIZES = [(50, 2, 24, 3), (6, 1, 16, 5), (27, 3, 36, 6)]
"""block_size, n_head, n_embd and sequences: counts of mask elements that are and are not multiples of 4 and of 64."""


@pytest.mark.slow
@pytest.mark.parametrize(("block", "heads", "width", "batch"), SIZES)
def test_compiled_is_eager_for_odd_sizes(config: Build, block: int, heads: int, width: int, batch: int) -> None:
    """Whole steps with dropout: losses and gradient norms."""
    sizes = {"model.block_size": block, "model.n_head": heads, "model.n_embd": width, "model.dropout": 0.2}
    sizes |= {"training.batch_tokens": 2 * batch * block, "hardware.micro_batch_size": batch}
    _, expected = steps(config(**sizes), 6)
    _, found = steps(config(**sizes, **{"hardware.compile": True}), 6)
    for a, b in zip(expected, found, strict=True):
        assert abs(a.loss - b.loss) < 1e-5 and abs(a.grad_norm - b.grad_norm) < 1e-4


@pytest.mark.slow
def test_compiled_is_eager_after_another_shape(config: Build) -> None:
    """As in a sweep in one process."""
    hardware = {"hardware.compile": True, "model.dropout": 0.1}
    steps(config(**hardware, **{"model.block_size": 8, "model.n_embd": 24, "hardware.micro_batch_size": 2}), 1)
    _, expected = steps(config(**{"model.dropout": 0.1}), 4)
    _, found = steps(config(**hardware), 4)
    for a, b in zip(expected, found, strict=True):
        assert abs(a.loss - b.loss) < 1e-5 and abs(a.grad_norm - b.grad_norm) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_learns_what_the_cpu_learns(config: Build, precision: str) -> None:
    built = config(**{"hardware.device": "cuda", "hardware.precision": precision})
    compute = set_up_device(built.hardware)
    dataset = prepare(built.data)
    state = build_state(built, built.model.with_vocab(dataset.vocab_size), compute)
    batches = TrainBatches(dataset.train, built, compute.device)
    _, expected = steps(config(), 10)
    for reference in expected:
        loss = train_step(state, batches.micro_batches(state.samples), built).wait().loss
        assert abs(loss - reference.loss) < (1e-3 if precision == "fp32" else 5e-2)
