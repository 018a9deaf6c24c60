"""hardware.strategy=fsdp: weights in parts, and yet the same curve, the same checkpoints, the same way on."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nanogpt import schema
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.device import Compute
from nanogpt.distributed.env import STORE_VARIABLE, RankEnv
from nanogpt.distributed.rendezvous import rendezvous
from nanogpt.errors import BadInput
from nanogpt.estimates.memory import estimate_training_memory
from nanogpt.metrics_file import read_rows
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training.state import build_state
from nanogpt.training.step import train_step
from tests import ranks
from tests.ranks import Fault, Started, processes

Build = Callable[..., TrainConfig]
FSDP = {"hardware.strategy": "fsdp", "hardware.micro_batch_size": 1}
GENTLE = {"optimizer.lr": 1e-4, "tracking.log_every": 1, "training.steps": 9}


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    run = RunDirectory(locate_run(config))
    return load_file(run.checkpoints.path(run.checkpoints.steps()[-1]) / "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware.activation_checkpointing": True, "model.tie_weights": False},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_curve_is_that_of_one_rank(config: Build, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With dropout and several micro-batches: rows, samples and weights, up to rounding."""
    one = config(**GENTLE, **changes, runs_dir=str(tmp_path / "one"))
    parts = config(**GENTLE, **changes, **FSDP, runs_dir=str(tmp_path / "parts"))
    assert ranks.run(one)[0] == [0] and ranks.run(parts, 2)[0] == [0, 0]
    expected, found = (read_rows(locate_run(built) / "metrics.jsonl") for built in (one, parts))
    assert len(expected) == len(found) > 9
    for a, b in zip(expected, found, strict=True):
        for key in ("loss", "val_loss", "train_loss", "grad_norm"):
            assert abs(a.get(key, 0) - b.get(key, 0)) < 2e-6, (a, b)
    theirs = weights(parts)
    for name, tensor in weights(one).items():
        assert torch.allclose(tensor, theirs[name], atol=2e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("action", ["SIGKILL", "SIGTERM"])
def test_what_is_stopped_goes_on_to_the_bit(config: Build, undisturbed: Any, action: str) -> None:
    """A signal stops all ranks, a dead one ends the others; then the same command continues, exactly."""
    changes = FSDP | {"training.steps": 9}
    built = config(**changes)
    codes, output = ranks.run(built, 2, [Fault("nanogpt.training.loop.train_step", 6, action, 1)])
    assert codes == ([85, 85] if action == "SIGTERM" else [7, -signal.SIGKILL]), output
    assert ranks.run(built, 2)[0] == [0, 0]
    assert ranks.result(built) == undisturbed(2, **changes)


def test_a_run_may_change_between_parts_and_whole(config: Build, tmp_path: Path) -> None:
    """Two ranks with parts, then one with all, then three with parts that aren't equal: the curve goes on."""
    whole, changing = (
        config(**GENTLE, **{"training.batch_tokens": 96}, runs_dir=str(tmp_path / name)) for name in ("one", "other")
    )
    assert ranks.run(whole)[0] == [0]
    for world, strategy, stop_at in ((2, "fsdp", 3), (1, "ddp", 3), (3, "fsdp", None)):
        hardware = changing.hardware.model_copy(update={"strategy": strategy})
        fault = [Fault("nanogpt.training.loop.train_step", stop_at, "SIGTERM")] if stop_at else []
        codes, output = ranks.run(changing.model_copy(update={"hardware": hardware}), world, fault)
        assert codes == [85 if stop_at else 0] * world, output
    assert "ranks 1 -> 3, strategy ddp -> fsdp" in output
    expected, found = (read_rows(locate_run(built) / "metrics.jsonl") for built in (whole, changing))
    losses = [(a["loss"], b["loss"]) for a, b in zip(expected, found, strict=True) if "loss" in a]
    assert max(abs(a - b) for a, b in losses) < 2e-6


@pytest.mark.slow
def test_half_precision_reduced_once_a_step(config: Build, tmp_path: Path) -> None:
    """Blocks gathered in bf16 and gradients reduced with the last micro-batch, as on a GPU with room: a run that is
    stopped goes on to the bit, and the curve is that of whole weights in bf16 up to its rounding.
    """
    half = {"hardware.precision": "bf16", "hardware.micro_batch_size": 1, **GENTLE}
    once = Fault("nanogpt.training.state.must_reduce_every_micro_batch", 1, "returns 0", None)
    whole, parts, stopped = (
        config(**half, **{"hardware.strategy": strategy}, runs_dir=str(tmp_path / name))
        for name, strategy in (("whole", "ddp"), ("parts", "fsdp"), ("stopped", "fsdp"))
    )
    assert ranks.run(whole, 2)[0] == [0, 0] and ranks.run(parts, 2, [once])[0] == [0, 0]
    stop = Fault("nanogpt.training.loop.train_step", 5, "SIGTERM", 1)
    assert ranks.run(stopped, 2, [once, stop])[0] == [85, 85] and ranks.run(stopped, 2, [once])[0] == [0, 0]
    assert ranks.result(stopped) == ranks.result(parts)
    expected, found = (read_rows(locate_run(built) / "metrics.jsonl") for built in (whole, parts))
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(expected, found, strict=True) if "loss" in a]
    assert 0 < max(differences) < 2e-3


def test_it_starts_from_the_weights_of_a_run(config: Build, tmp_path: Path) -> None:
    first = config(**{"training.steps": 5}, runs_dir=str(tmp_path / "first"))
    assert ranks.run(first)[0] == [0]
    tuned = config(**FSDP, **{"training.steps": 0}, init_from=str(locate_run(first)), runs_dir=str(tmp_path / "tuned"))
    assert ranks.run(tuned, 2)[0] == [0, 0]
    before, after = weights(first), weights(tuned)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_kept_whole_and_replayed_alone(config: Build) -> None:
    built = config(**FSDP)
    codes, output = ranks.run(built, 2, [Fault("nanogpt.model.gpt.linear_cross_entropy", 12, "nan", 1)])
    assert codes == [6, 6], output
    incident = locate_run(built) / "incidents" / "0"
    assert (incident / "checkpoint").is_dir() and json.loads((incident / "incident.json").read_text())["step"] == 3
    codes, output = ranks.run(config(**FSDP, replay=str(incident)))
    assert codes == [0] and "every number is finite here" in output


def holdings(text: str, rank: int, folder: str) -> None:
    """A rank that tells how much of weights and moments it has after a step that was held back, and one more."""
    import os

    from nanogpt.data.batches import TrainBatches
    from nanogpt.data.prepare import prepare

    os.environ[STORE_VARIABLE] = f"{folder}/store"
    config = schema.from_dict(TrainConfig, json.loads(text))
    compute, group = rendezvous(RankEnv(rank, 2, rank, 2), 30, lambda _: Compute(torch.device("cpu"), "fp32", "test"))
    group.join(compute.device)
    dataset = prepare(config.data)
    state = build_state(config, config.model.with_vocab(dataset.vocab_size), compute, group)
    batches = TrainBatches(dataset.train, config, compute.device, rank, 2)
    state.found_nonfinite = torch.ones(())
    state.optimizer.found_inf = state.found_nonfinite  # pyright: ignore[reportAttributeAccessIssue]
    before = [tensor.clone() for _, _, tensor in state.gather_tensors()]
    train_step(state, batches.micro_batches(0), config)
    held = all(torch.equal(a, b[2]) for a, b in zip(before, state.gather_tensors(), strict=False))
    state.found_nonfinite.zero_()
    train_step(state, batches.micro_batches(state.samples), config)
    moved = not any(torch.equal(a, b[2]) for a, b in zip(before, state.gather_tensors(), strict=False))
    local = [tensor for part in state.tensors().values() for tensor in part.values()]
    here = sum(getattr(tensor, "_local_tensor", tensor).numel() for tensor in local if tensor.dim())
    (Path(folder) / f"{rank}.json").write_text(
        json.dumps([held, moved, here, sum(t.numel() for t in local if t.dim())])
    )


def test_a_rank_has_its_part_of_weights_and_moments(config: Build, tmp_path: Path) -> None:
    """And the optimizer heeds a step whose numbers were not finite, as it must where they are read late."""
    built = config(**FSDP)
    started = [
        processes.Process(target=holdings, args=(schema.to_json(built), rank, str(tmp_path))) for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert all(held and moved for held, moved, _, _ in told)
    assert sum(here for _, _, here, _ in told) == told[0][3] and abs(told[0][2] / told[1][2] - 1) < 0.1


def test_the_memory_of_a_part() -> None:
    """It shrinks with the ranks; the embeddings, the head and two blocks are whole at times."""
    config = ModelConfig(n_layer=6, n_head=4, n_embd=64, block_size=32, vocab_size=512)
    model = GPT(config)
    block, *_ = blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    total = sum(p.numel() for p in model.parameters())
    one, many = (estimate_training_memory(config, "fp32", 1, shards=shards) for shards in (1, 8))
    assert one.weights == 4 * total and one.activations == many.activations
    assert abs(many.optimizer_state - one.optimizer_state / 8) < 8
    assert abs(many.weights - (one.weights / 8 + 4 * (total - sum(blocks) + 2 * block))) < 8
    assert many.gradients == many.weights


@pytest.mark.slow
def test_compiled_blocks_in_parts(config: Build, tmp_path: Path) -> None:
    """The same losses as without torch.compile, up to rounding."""
    rows: list[list[dict[str, float]]] = []
    for compile in (False, True):
        built = config(**GENTLE, **FSDP, **{"hardware.compile": compile}, runs_dir=str(tmp_path / str(compile)))
        assert Started(built, 2).wait() == [0, 0]
        rows.append(read_rows(locate_run(built) / "metrics.jsonl"))
    assert all(abs(a.get("loss", 0) - b.get("loss", 0)) < 1e-5 for a, b in zip(*rows, strict=True))


REFUSED = [
    ({"hardware.fp8": True, "hardware.compile": True}, "is not possible with hardware.fp8=true"),
    ({"hardware.precision": "fp16"}, "is not possible with hardware.precision=fp16"),
    ({"hardware.compile": True, "hardware.compile_mode": "max-autotune"}, "hardware.compile_mode=max-autotune"),
    ({"hardware.devices": 1}, "needs two ranks or more, but hardware.devices=1"),
    ({"optimizer.name": "muon"}, "optimizer=muon needs whole matrices"),
]


@pytest.mark.parametrize(("changes", "why"), REFUSED)
def test_what_parts_exclude(config: Build, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=r"hardware\.strategy=fsdp: ") as caught:
        config(**FSDP, **changes)
    assert why in str(caught.value)


def test_one_rank_alone(config: Build) -> None:
    codes, output = ranks.run(config(**FSDP))
    assert codes == [2] and "hardware.strategy=fsdp: needs two ranks or more, and there is one" in output
    assert not locate_run(config(**FSDP)).exists()
