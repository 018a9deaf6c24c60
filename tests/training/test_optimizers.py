"""Muon and NorMuon in whole runs: killed and continued to a bit, and the same curve on any ranks."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import locate
from tests import ranks
from tests.ranks import Started

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
RULE = {"optimizer.momentum_warmup_steps": 12, "optimizer.weight_decay": 0.1, "optimizer.embedding_lr": 3e-3}


@pytest.mark.parametrize(
    ("rule", "world"),
    [
        ("muon", 1),
        ("normuon", 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("muon", 2), ("normuon", 1))),
    ],
)
def test_killed_and_continued_to_a_bit(config: Build, undisturbed: Reference, rule: str, world: int) -> None:
    """Weights, momenta, metrics and samples, with a momentum that is still warming up."""
    changes = {"optimizer.name": rule} | RULE
    started = Started(config(**changes), world).until_rows(9)
    started.send(signal.SIGKILL)
    assert set(started.wait()) == {-signal.SIGKILL}, "it was still running"
    codes, output = ranks.run(config(**changes), world)
    assert codes == [0] * world, output
    assert ranks.result(config(**changes)) == undisturbed(world, **changes)


@pytest.mark.parametrize("rule", ["muon", pytest.param("normuon", marks=pytest.mark.slow)])
def test_ranks_never_change_the_curve(config: Build, tmp_path: Path, rule: str) -> None:
    gentle = {"optimizer.name": rule, "optimizer.lr": 1e-3, "tracking.log_every": 1, "training.steps": 12}
    rows: list[list[dict[str, float]]] = []
    for world in (1, 2):
        built = config(**gentle, runs_dir=str(tmp_path / str(world)))
        assert ranks.run(built, world)[0] == [0] * world
        rows.append([row for row in read_rows(locate(built) / "metrics.jsonl") if "loss" in row])
    assert len(rows[0]) == len(rows[1]) == 12
    assert all(abs(a["loss"] - b["loss"]) < 1e-4 for a, b in zip(*rows, strict=True))
    assert rows[0][-1]["loss"] < rows[0][0]["loss"] - 0.01
