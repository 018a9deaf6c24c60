"""Compare training steps on a GPU: eager, compiled, as CUDA graphs, and in several precisions."""

from typing import Any

import torch
from torch import Tensor

from nanogpt.config import DoctorConfig, TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.device import find_device, set_up_device
from nanogpt.doctor.invariants import LOSSES, MODEL, random_ids, temporary_folder
from nanogpt.doctor.trainings import tiny_config
from nanogpt.errors import BadEnvironment
from nanogpt.gpu_check.findings import Judgement, judge
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import forward_backward, train_step

GRADIENTS = 2e-3  # largest difference over the largest gradient, both in fp32 with TF32
SCALE = 2.0**32  # loss scale at which every fp16 gradient overflows
FP8_LOSS, FP16_LOSS = 0.1, 0.05  # nats: largest difference to ten steps in bf16 or fp32


def build_tiny_training(config: DoctorConfig, **hardware: Any) -> tuple[TrainState, TrainConfig]:
    """Return a tiny training with dropout, whose steps have two micro-batches."""
    with temporary_folder() as folder:
        built = tiny_config(
            folder, "gpu", hardware={"device": config.device, "threads": 1, "micro_batch_size": 4} | hardware
        )
    model = built.model.with_vocab(MODEL.vocab_size or 0)
    return build_state(built, model, set_up_device(built.hardware)), built


def micro_batches(state: TrainState, built: TrainConfig, step: int) -> list[Batch]:
    device = state.compute.device
    ids = random_ids((8, built.model.block_size + 1), device, step)
    keys = torch.arange(8 * step, 8 * step + 8, device=device)
    halves = (slice(0, 4), slice(4, 8))
    return [Batch(ids[half, :-1].contiguous(), ids[half, 1:].contiguous(), keys[half]) for half in halves]


def train_steps(state: TrainState, built: TrainConfig, steps: int) -> list[float]:
    return [train_step(state, micro_batches(state, built, step), built).wait().loss for step in range(steps)]


def judge_difference(name: str, worst: float, limit: float, what: str) -> Judgement:
    return judge(name, worst <= limit, f"{what} differ by {worst:.2g}", f"at most {limit:.0e}", worst=worst)


def check_compiled(config: DoctorConfig) -> list[Judgement]:
    """Compare compiled with eager training, with dropout."""
    eager, fused = (
        train_steps(*build_tiny_training(config, precision="fp32", compile=compiled), 6) for compiled in (False, True)
    )
    worst = max(abs(a - b) for a, b in zip(eager, fused, strict=True))
    limit = LOSSES[find_device(config.device, "device").type]
    return [judge_difference("compiled and eager, with dropout", worst, limit, "losses"), *check_learning(eager)]


def check_learning(found: list[float]) -> list[Judgement]:
    """Compare the loss of random weights with the logarithm of the vocabulary size."""
    expected = float(torch.tensor(float(MODEL.vocab_size or 1)).log())
    passed = abs(found[0] - expected) < 0.5
    return [judge("loss of random weights", passed, f"{found[0]:.3f}", f"{expected:.2f} ± 0.5", loss=found[0])]


def check_graphs(config: DoctorConfig) -> list[Judgement]:
    """Compare gradients of replayed CUDA graphs with those of the eager model."""
    eager = compute_gradients(*build_tiny_training(config, precision="fp32"))
    graphs = compute_gradients(
        *build_tiny_training(config, precision="fp32", compile=True, compile_mode="reduce-overhead")
    )
    scale = max(float(value.abs().max()) for value in eager)
    worst = max(float((a - b).abs().max()) for a, b in zip(eager, graphs, strict=True)) / scale if scale else 1.0
    return [judge_difference("CUDA graphs and eager", worst, GRADIENTS, "gradients")]


def compute_gradients(state: TrainState, built: TrainConfig) -> list[Tensor]:
    """Return the gradients of five steps without an update: a graph is recorded in the second or third."""
    found: list[Tensor] = []
    for step in range(5):
        forward_backward(state, micro_batches(state, built, step), built)
        found += [p.grad.detach().clone() for p in state.model.parameters() if p.grad is not None]
        state.clear_gradients()
    return found


def check_fp16(config: DoctorConfig) -> list[Judgement]:
    """Check that an fp16 overflow changes no weight and halves the loss scale; compare fp16 with fp32 training."""
    try:
        state, built = build_tiny_training(config, precision="fp16")
    except BadEnvironment as error:
        return [Judgement(name="fp16", verdict="skip", found=str(error))]
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": SCALE})
    before = [p.detach().clone() for p in state.model.parameters()]
    train_steps(state, built, 1)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    scale = state.scaler.get_scale()
    half, full = (train_steps(*build_tiny_training(config, precision=name), 10) for name in ("fp16", "fp32"))
    worst = max(abs(a - b) for a, b in zip(half, full, strict=True))
    return [
        judge("fp16: an overflow changes no weight", unchanged, "unchanged" if unchanged else "changed"),
        judge("fp16: the scale after an overflow", scale == SCALE / 2, f"{scale:.4g}", f"{SCALE / 2:.4g}", scale=scale),
        judge_difference("fp16 and fp32", worst, FP16_LOSS, "losses"),
    ]


def check_fp8(config: DoctorConfig) -> list[Judgement]:
    """Compare fp8 with bf16 training."""
    try:
        found = train_steps(*build_tiny_training(config, precision="bf16", compile=True, fp8=True), 10)
    except BadEnvironment as error:
        return [Judgement(name="fp8", verdict="skip", found=str(error))]
    usual = train_steps(*build_tiny_training(config, precision="bf16", compile=True), 10)
    worst = max(abs(a - b) for a, b in zip(found, usual, strict=True))
    return [judge_difference("fp8 and bf16", worst, FP8_LOSS, "losses")]
