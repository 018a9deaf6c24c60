"""Every optimizer but AdamW, which other tests use, in whole runs: exact resume, equal curves on one and two ranks."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import OPTIMIZERS, Rule, TrainConfig
from nanogpt.config.optimizer import EVERY_OPTIMIZERS_KEYS
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import locate_run
from tests import ranks
from tests.ranks import Started

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
SETTINGS = {"momentum_warmup_steps": 12, "weight_decay": 0.1, "embedding_lr": 3e-3}
RULES = [name for name in OPTIMIZERS if name != "adamw"]


def choose_settings(rule: Rule) -> dict[str, object]:
    """Return the changes that make a run use this optimizer, with those of SETTINGS that it reads."""
    keys = (*EVERY_OPTIMIZERS_KEYS, *OPTIMIZERS[rule].keys)
    return {f"optimizer.{key}": value for key, value in SETTINGS.items() if key in keys} | {"optimizer.name": rule}


@pytest.mark.parametrize(
    ("rule", "world"),
    [
        pytest.param(rule, world, marks=() if world == 1 + number % 2 else pytest.mark.slow)
        for number, rule in enumerate(RULES)
        for world in (1, 2)
    ],
)
def test_killed_and_continued_to_a_bit(config: Build, undisturbed: Reference, rule: Rule, world: int) -> None:
    """Weights, momenta, metrics and samples, with a momentum that is still warming up."""
    changes = choose_settings(rule)
    started = Started(config(**changes), world).until_rows(9)
    started.send(signal.SIGKILL)
    assert set(started.wait()) == {-signal.SIGKILL}, "it was still running"
    codes, output = ranks.run(config(**changes), world)
    assert codes == [0] * world, output
    assert ranks.result(config(**changes)) == undisturbed(world, **changes)


@pytest.mark.parametrize("rule", [RULES[0], *(pytest.param(rule, marks=pytest.mark.slow) for rule in RULES[1:])])
def test_ranks_never_change_the_curve(config: Build, tmp_path: Path, rule: str) -> None:
    gentle = {"optimizer.name": rule, "optimizer.lr": 1e-3, "tracking.log_every": 1, "training.steps": 12}
    rows: list[list[dict[str, float]]] = []
    for world in (1, 2):
        built = config(**gentle, runs_dir=str(tmp_path / str(world)))
        assert ranks.run(built, world)[0] == [0] * world
        rows.append([row for row in read_rows(locate_run(built) / "metrics.jsonl") if "loss" in row])
    assert len(rows[0]) == len(rows[1]) == 12
    assert all(abs(a["loss"] - b["loss"]) < 1e-4 for a, b in zip(*rows, strict=True))
    assert rows[0][-1]["loss"] < rows[0][0]["loss"] - 0.01
