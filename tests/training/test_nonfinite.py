"""Numbers that are not finite: ranks stop or skip together, nothing bad is saved, the step can be run again alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput, Diverged
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training import loop
from nanogpt.training.run import train
from nanogpt.training.spikes import Spikes
from tests import ranks
from tests.ranks import Fault

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
QUIET = {"eval.every": 1000, "tracking.sample_tokens": 0, "tracking.log_every": 1}
LOSS = "nanogpt.model.gpt.linear_cross_entropy"


def evaluations(rank: int, world: int) -> int:
    """Calls of the loss before the first step: the evaluation at step 0 (two batches), and settling the buckets."""
    return sum(number % world == rank for number in (0,)) * 2 + (2 if world > 1 else 0)


@pytest.mark.parametrize(("world", "bad"), [(1, 0), (2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_f18_a_nan_on_one_rank_halts_all(config: Build, world: int, bad: int) -> None:
    built = config(**QUIET)
    codes, output = ranks.run(built, world, [Fault(LOSS, evaluations(bad, world) + 8, "nan", bad)])
    assert codes == [6] * world
    assert "error: step 8: loss nan" in output and "the last checkpoint is intact" in output
    assert output.count("error: ") == 1
    loaded, damaged = RunDirectory(locate_run(built)).checkpoints.load_newest()
    assert loaded is not None and not damaged and loaded.state["step"] == 4
    assert all(bool(torch.isfinite(t).all()) for t in [*loaded.model.values(), *loaded.optimizer.values()])
    incident = json.loads((locate_run(built) / "incidents/0/incident.json").read_text())
    (part,) = incident["micro_batches"]
    assert (incident["step"], incident["samples"], part["rank"], part["loss"]) == (8, 7 * 8, bad, "nan")
    assert part["first_sample"] == 7 * 8 + bad * (8 // world)
    assert len(part["windows"]) == 8 // world and part["windows"][0][0].endswith(".bin")
    assert json.loads((locate_run(built) / "status.json").read_text())["state"] == "diverged"
    assert [row["step"] for row in read_rows(locate_run(built) / "metrics.jsonl") if "loss" in row] == list(range(1, 8))


def test_f18_the_same_command_gets_past_a_passing_fault(config: Build, undisturbed: Reference) -> None:
    assert ranks.run(config(**QUIET), 2, [Fault(LOSS, evaluations(1, 2) + 8, "nan", 1)])[0] == [6, 6]
    assert ranks.run(config(**QUIET), 2)[0] == [0, 0]
    assert ranks.result(config(**QUIET)) == undisturbed(2, **QUIET)


def test_skipping_leaves_the_update_out_on_all_ranks(config: Build) -> None:
    """The step counts, its batch is passed over, the weights stay; a resumed run knows of it."""
    built = config(**QUIET, **{"training.on_nonfinite": "skip"})
    faults = [Fault(LOSS, evaluations(1, 2) + 8, "nan", 1), Fault("nanogpt.training.loop.train_step", 14, "SIGTERM")]
    codes, output = ranks.run(built, 2, faults)
    assert codes == [85, 85] and "its update is left out, training goes on" in output
    loaded, _ = RunDirectory(locate_run(built)).checkpoints.load_newest()
    assert loaded is not None and loaded.state["skipped"] == [7] and loaded.state["samples"] == 14 * 8
    assert int(loaded.optimizer["transformer.wte.weight/step"]) == 13
    assert ranks.run(built, 2)[0] == [0, 0]
    rows = read_rows(locate_run(built) / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 8), *range(9, 21)]
    assert [row["skipped"] for row in rows if "skipped" in row] == [1]


def test_too_many_skips_end_the_run(config: Build) -> None:
    built = config(**QUIET, **{"training.on_nonfinite": "skip", "training.max_skips": 2})
    faults = [Fault(LOSS, 2 + step, "nan") for step in (3, 5, 6)]
    codes, output = ranks.run(built, 1, faults)
    assert codes == [6] and "error: step 6: loss nan" in output
    folders = sorted(path.name for path in (locate_run(built) / "incidents").iterdir())
    assert folders == ["0", "1", "2"]


def poison(built: TrainConfig, at: int, monkeypatch: pytest.MonkeyPatch, value: float = float("nan")) -> None:
    """Weights become another value after a step, as from a broken device."""
    real = loop.train_step

    def poisoned(state, *rest):  # type: ignore[no-untyped-def]
        metrics = real(state, *rest)
        if state.step == at:
            with torch.no_grad():
                next(state.model.parameters()).fill_(value)
        return metrics

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(Diverged):
        train(built)
    monkeypatch.setattr(loop, "train_step", real)


@pytest.mark.parametrize("at", [11, 12, 15], ids=["between", "at a save", "at an evaluation"])
def test_a_weight_that_is_not_finite_is_never_saved(config: Build, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    built = config()
    poison(built, at, monkeypatch)
    loaded, damaged = RunDirectory(locate_run(built)).checkpoints.load_newest()
    assert loaded is not None and not damaged and loaded.state["step"] < at
    assert all(bool(torch.isfinite(tensor).all()) for tensor in loaded.model.values())
    assert json.loads((locate_run(built) / "status.json").read_text())["state"] == "diverged"


def test_replay_runs_the_step_alone(
    config: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights so large that the loss overflows: the replay finds the same, and names where."""
    built = config(**QUIET)
    poison(built, 11, monkeypatch, 3e38)
    capsys.readouterr()
    with pytest.raises(Diverged, match=r"step 12: not finite here either, in .* places, first "):
        train(config(replay=str(locate_run(built) / "incidents/0")))
    assert "first sample" in capsys.readouterr().out


def test_replay_of_a_fault_that_has_passed(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = config(**QUIET)
    ranks.run(built, 2, [Fault(LOSS, evaluations(1, 2) + 8, "nan", 1)])
    incident = locate_run(built) / "incidents/0"
    assert train(config(replay=str(incident))) == 0
    shown = capsys.readouterr().out
    assert "every number is finite here, the run had loss nan" in shown
    assert "56" in shown and "60" in shown, "both ranks' micro-batches"


def test_replay_of_what_is_no_incident(config: Build, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not an incident directory"):
        train(config(replay=str(tmp_path)))
    built = config(**QUIET)
    ranks.run(built, 1, [Fault(LOSS, 8, "nan")])
    incident = locate_run(built) / "incidents/0/incident.json"
    content = incident.read_text()
    for wrong in ('"micro_batch_size": 3', '"micro_batch_size": 0'):
        incident.write_text(content.replace('"micro_batch_size": 8', wrong))
        with pytest.raises(BadInput, match=r"micro_batch_size=\d: "):
            train(config(replay=str(incident.parent)))
    incident.write_text(content)
    for file in (locate_run(built) / "incidents/0/checkpoint").iterdir():
        file.unlink()
    (locate_run(built) / "incidents/0/checkpoint").rmdir()
    with pytest.raises(BadCheckpoint, match="holds no weights"):
        train(config(replay=str(locate_run(built) / "incidents/0")))


def test_fp16_hides_no_nan(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler skips every step of a loss that is NaN; that is divergence too."""
    built = config(**QUIET)
    real = loop.train_step

    def scaled(state, *rest):  # type: ignore[no-untyped-def]
        state.scaler = torch.amp.GradScaler("cpu", enabled=True)
        if state.step == 3:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("nan"))
        return real(state, *rest)

    monkeypatch.setattr(loop, "train_step", scaled)
    with pytest.raises(Diverged, match="loss nan"):
        train(built)


def test_fp16_gradients_that_stay_nan_are_divergence(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler halves its scale a few times, as for an overflow; at a scale of 1 it is no overflow any more."""
    built = config(**QUIET, **{"training.steps": 200})
    real = loop.train_step

    def broken(state, *rest):  # type: ignore[no-untyped-def]
        if state.step == 3:
            state.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)
            next(state.model.parameters()).register_hook(lambda grad: grad * float("nan"))
        return real(state, *rest)

    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(Diverged, match=r"step 7: loss .*, gradient norm nan"):
        train(built)


def test_f19_spikes_are_told_and_counted(config: Build) -> None:
    spikes = Spikes()
    noise = [3.0 + 0.01 * (i * 7 % 5) for i in range(200)]
    assert not any(spikes.observe(value, 1.0) for value in noise[:150])
    assert spikes.observe(3.5, 1.0) == "loss 3.5, 3.02 on average over the last 128 steps"
    assert spikes.observe(3.02, 9.0) is not None and spikes.count == 2
    assert not Spikes().observe(1e9, 1e9), "the first steps have nothing to stand out from"
    again = Spikes(**spikes.to_dict())
    assert again == spikes and len(again.losses) == 128


def test_f19_a_spike_in_a_run(config: Build, undisturbed: Reference) -> None:
    """One loss times a million after 40 quiet steps: a line, a count in the rows, and exact resume with the window."""
    calm = {**QUIET, "training.steps": 60, "optimizer.lr": 1e-4, "optimizer.grad_clip": 1.0}
    built = config(**calm)
    codes, output = ranks.run(built, 1, [Fault(LOSS, 2 + 41, "spike")])
    assert codes == [0] and "step 41: spike: loss" in output
    rows = read_rows(locate_run(built) / "metrics.jsonl")
    assert [row.get("spikes", 0) for row in rows if "loss" in row] == [0] * 40 + [1] * 20
