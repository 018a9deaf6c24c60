"""Numbers read late: the same run to the last bit as with every step's numbers read at once, whatever happens on it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt.config import OPTIMIZERS, TrainConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.data.prepare import prepare
from nanogpt.device import Compute, set_up_device
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import Diverged
from nanogpt.metrics_file import read_rows
from nanogpt.model import gpt
from nanogpt.run_directory import locate_run
from nanogpt.training import loop
from nanogpt.training.run import train
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.step import train_step
from tests import ranks
from tests.ranks import Fault

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
LATE = Fault("nanogpt.training.state.defers_metrics", 1, "true", None)
READS = "nanogpt.training.state.defers_metrics"
RULES = [name for name in OPTIMIZERS if name != "adamw"]
BROKEN = {"eval.every": 10, "tracking.log_every": 4, "training.on_nonfinite": "skip"}


def spoil(config: TrainConfig, factors: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply the loss of some steps' batches, the first being step 1, as often as they are trained on."""
    batches = TrainBatches(prepare(config.data).train, config, torch.device("cpu"))
    wanted = {
        step: next(batches.micro_batches((step - 1) * config.batch_sequences)).targets.flatten() for step in factors
    }
    real = gpt.linear_cross_entropy

    def spoiled(x: Any, weight: Any, bias: Any, targets: Any, softcap: Any = None) -> Any:
        loss = real(x, weight, bias, targets, softcap)
        for step, those in wanted.items():
            if torch.is_grad_enabled() and torch.equal(targets, those):
                loss = loss * factors[step]
        return loss

    monkeypatch.setattr(gpt, "linear_cross_entropy", spoiled)


def incidents(path: Path) -> dict[str, bytes]:
    """Every file of every incident, but for the config, which names the run directory."""
    files = [file for file in sorted(path.glob("incidents/**/*.*")) if file.name != "config.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def outcome(config: TrainConfig) -> tuple[dict[str, str], dict[str, bytes], list[str]]:
    """All that must not depend on when numbers are read."""
    path = locate_run(config)
    log = [line.partition("  ")[2].replace(str(path), "") for line in (path / "log.txt").read_text().splitlines()]
    return ranks.result(config), incidents(path), log


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({"tracking.log_every": 7, "eval.every": 10}, {}),
        pytest.param({"tracking.log_every": 100, "eval.every": 20, "checkpoint.every": 20}, {}, marks=pytest.mark.slow),
        (BROKEN, {1: float("nan"), 6: float("nan"), 7: float("inf"), 8: float("nan"), 18: float("nan")}),
        pytest.param(BROKEN | {"checkpoint.every": 1}, {1: float("nan"), 6: float("nan")}, marks=pytest.mark.slow),
        *(
            pytest.param(
                BROKEN | {"optimizer.name": rule, "optimizer.weight_decay": 0.1},
                {1: float("nan"), 6: float("nan"), 7: float("inf")},
                marks=() if rule == RULES[-1] else pytest.mark.slow,
            )
            for rule in RULES
        ),
        ({"training.steps": 60, "optimizer.lr": 1e-4, "tracking.log_every": 9, "eval.every": 60}, {41: 1e6, 43: 1e6}),
    ],
    ids=["plain", "all at once", "skipped", "skipped and saved", *RULES, "spikes"],
)
def test_late_reading_changes_nothing(
    config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], factors: dict[int, float]
) -> None:
    """Weights, moments, rows, samples, incidents and notes of a whole run."""
    at_once, late = (config(**changes, runs_dir=str(tmp_path / name)) for name in ("at-once", "late"))
    spoil(at_once, factors, monkeypatch)
    assert train(at_once) == 0
    monkeypatch.setattr(READS, lambda _: True)
    assert train(late) == 0
    assert outcome(late) == outcome(at_once)
    skipped = [row["step"] for row in read_rows(locate_run(late) / "metrics.jsonl") if "skipped" in row]
    assert skipped == [step for step, factor in factors.items() if factor != 1e6]


def test_a_run_that_diverges_does_so_at_the_same_step(
    config: Build, undisturbed: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error, incident, rows and checkpoint; and without the fault the same command gets to the same end."""
    changes = {"eval.every": 10, "tracking.log_every": 4}
    words: list[str] = []
    found: list[Any] = []
    for name, is_late in (("at-once", False), ("late", True)):
        built = config(**changes, runs_dir=str(tmp_path / name))
        with monkeypatch.context() as patches:
            spoil(built, {6: float("nan")}, patches)
            patches.setattr(READS, lambda _, late=is_late: late)
            with pytest.raises(Diverged) as caught:
                train(built)
            words.append(str(caught.value).replace(str(tmp_path / name), ""))
            status = json.loads((locate_run(built) / "status.json").read_text())
            found.append((outcome(built), status["state"], status["step"]))
    assert words[0] == words[1] and found[0] == found[1] and found[0][1:] == ("diverged", 5)
    monkeypatch.setattr(READS, lambda _: True)
    assert train(built) == 0
    assert ranks.result(built) == undisturbed(1, **changes)


@pytest.mark.parametrize(("world", "at"), [(1, 7), (2, 11)])
def test_a_stop_reads_what_is_pending(config: Build, undisturbed: Reference, world: int, at: int) -> None:
    """Stopped between two reads and continued: as if never stopped, and never late."""
    changes = {"tracking.log_every": 8, "eval.every": 20, "checkpoint.every": 20}
    stop = Fault("nanogpt.training.loop.train_step", at, "SIGTERM")
    codes, output = ranks.run(config(**changes), world, [LATE, stop])
    assert codes == [85] * world and f"stopped at step {at}, all saved" in output
    assert ranks.run(config(**changes), world, [LATE])[0] == [0] * world
    assert ranks.result(config(**changes)) == undisturbed(world, **changes)


def test_a_signal_while_a_step_is_broken(config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved at the stop is the state before the bad step, with its batch passed over."""
    changes = BROKEN | {"checkpoint.every": 20}
    at_once, late = (config(**changes, runs_dir=str(tmp_path / name)) for name in ("at-once", "late"))
    spoil(late, {6: float("nan")}, monkeypatch)
    assert train(at_once) == 0
    real = loop.train_step

    def stopping(state: TrainState, *rest: Any) -> Any:
        if state.step == 6 and not state.skipped_steps:
            signal.raise_signal(signal.SIGTERM)
        return real(state, *rest)

    monkeypatch.setattr(READS, lambda _: True)
    monkeypatch.setattr(loop, "train_step", stopping)
    assert train(late) == 85
    assert json.loads((locate_run(late) / "status.json").read_text())["step"] == 6
    assert train(late) == 0
    assert ranks.result(late) == ranks.result(at_once)


@pytest.mark.slow
def test_ranks_go_back_together(config: Build, tmp_path: Path) -> None:
    """One rank's NaN in the middle of what is pending: both leave the same step out, and lose no other."""
    loss = "nanogpt.model.gpt.linear_cross_entropy"
    bad = Fault(loss, 2 + 6, "nan", 1)  # two calls settle the buckets
    found: list[Any] = []
    for name, faults in (("at-once", [bad]), ("late", [bad, LATE])):
        built = config(**BROKEN, runs_dir=str(tmp_path / name))
        codes, output = ranks.run(built, 2, faults)
        assert codes == [0, 0] and "step 6: loss nan" in output
        found.append((ranks.result(built), incidents(locate_run(built))))
    assert found[0] == found[1]


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a GPU: for a number, a shape that depends on numbers, or a copy to a CPU."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "index.Tensor_mask", "equal.default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.WAITS), f"a number was asked for by {func}"
        return func(*args, **(kwargs or {}))


def start(config: TrainConfig, compute: Compute) -> tuple[TrainState, TrainBatches]:
    dataset = prepare(config.data)
    state = build_state(config, config.model.with_vocab(dataset.vocab_size), compute)
    return state, TrainBatches(dataset.train, config, compute.device)


def forbid_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors refuse to be copied to the CPU or to Python; on a CPU no operation would show it."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("numbers were asked for")

    for name in ("tolist", "cpu", "numpy", "item"):
        monkeypatch.setattr(torch.Tensor, name, refuse)


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_late_step_asks_the_device_nothing(
    config: Build, rule: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank alone, and one of two whose process group has no other; sharded in test_fake_ranks.py."""
    changes = {"hardware.micro_batch_size": 2, "optimizer.grad_clip": 1.0, "optimizer.name": rule}
    built = config(**changes)
    monkeypatch.setattr(READS, lambda _: True)
    state, batches = start(built, set_up_device(built.hardware))
    if ranks == 2:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
        state.group = ProcessGroup(RankEnv(0, 2, 0, 2))
        state.forward = state.group.wrap_ddp(state.model, state.compute.device)
    forbid_waiting(monkeypatch)
    try:
        with NoWaiting():
            steps = [train_step(state, batches.micro_batches(state.samples), built) for _ in range(3)]
            for wait in (
                steps[0].wait,
                lambda: bool(steps[0].loss_and_norm[0] > 0),
                lambda: steps[0].loss_and_norm.nonzero(),
            ):
                with pytest.raises(AssertionError, match="asked for"):
                    wait()
    finally:
        if ranks == 2:
            dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.null_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_on_a_gpu_never_waits(config: Build, precision: str) -> None:
    changes = {"hardware.device": "cuda", "hardware.precision": precision, "hardware.micro_batch_size": 4}
    built = config(**changes, **{"optimizer.grad_clip": 1.0})
    state, batches = start(built, set_up_device(built.hardware))
    for _ in range(2):  # the allocators and libraries set themselves up
        train_step(state, batches.micro_batches(state.samples), built)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [train_step(state, batches.micro_batches(state.samples), built) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        batches.close()
    assert all(step.wait().finite for step in steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_late_reading_changes_nothing_on_a_gpu(config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fused kernels that heed the flag on the device, and batches copied in from a thread."""
    same = BROKEN | {"hardware.device": "cuda", "hardware.deterministic": True}
    at_once, late = (config(**same, runs_dir=str(tmp_path / name)) for name in ("at-once", "late"))
    batches = TrainBatches(prepare(late.data).train, late, torch.device("cpu"))
    bad = {
        step: next(batches.micro_batches((step - 1) * late.batch_sequences)).targets.flatten().cuda()
        for step in (1, 6, 7)
    }
    real = gpt.linear_cross_entropy

    def spoiled(x: Any, weight: Any, bias: Any, targets: Any, softcap: Any = None) -> Any:
        hit = torch.stack([(targets == one).all() for one in bad.values()]).any() & torch.is_grad_enabled()
        return real(x, weight, bias, targets, softcap) * torch.where(hit, torch.nan, 1.0)

    monkeypatch.setattr(gpt, "linear_cross_entropy", spoiled)
    assert train(late) == 0
    monkeypatch.setattr(READS, lambda _: False)
    assert train(at_once) == 0
    assert ranks.result(late) == ranks.result(at_once)
