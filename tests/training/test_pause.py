"""`stop_at_fraction`: a run in rungs is the run in one go."""

import json
from collections.abc import Callable

import pytest

from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput
from nanogpt.metrics_file import Row, read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import from_dict
from nanogpt.training.run import train
from tests import ranks

Build = Callable[..., TrainConfig]


def rows(config: TrainConfig, kind: str) -> list[Row]:
    return [row for row in read_rows(locate_run(config) / "metrics.jsonl") if kind in row]


def status(config: TrainConfig) -> dict[str, object]:
    return RunDirectory(locate_run(config)).read_status()


def test_paused_twice_and_finished_like_one_in_one_go(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit the same weights, losses and learning rates; the evaluations where it paused come on top."""
    whole = config(name="whole")
    assert train(whole) == 0
    parts = [config(name="parts", stop_at_fraction=share) for share in (1 / 9, 1 / 3, None)]
    assert locate_run(parts[0]) == locate_run(parts[-1]), "where it pauses is not part of its identity"
    reached: list[tuple[object, object]] = []
    for part in parts:
        assert train(part) == 0
        reached.append((status(part)["state"], status(part)["step"]))
    assert reached == [("paused", 3), ("paused", 7), ("finished", 20)]
    assert rows(parts[0], "loss") == rows(whole, "loss")
    at = {int(row["step"]): row["val_loss"] for row in rows(parts[0], "val_loss")}
    assert sorted(at) == [0, 3, 5, 7, 10, 15, 20]
    assert {step: at[step] for step in (0, 5, 10, 15, 20)} == {
        int(row["step"]): row["val_loss"] for row in rows(whole, "val_loss")
    }
    one, other = ranks.result(whole), ranks.result(parts[0])
    assert len(other) == len(one) + 2, "samples where it paused"
    assert {key for key in one if one[key] != other[key]} == {"metrics.jsonl"}
    assert "paused at step 3 of 20, all saved; stop_at_fraction=null goes on" in capsys.readouterr().out


def test_a_pause_that_was_reached_is_kept(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    for share in (0.5, 0.5, 0.2):
        assert train(config(stop_at_fraction=share)) == 0
    assert status(config())["step"] == 10
    assert capsys.readouterr().out.count("paused already, at step 10 of 20") == 2


def test_killed_on_the_way_to_a_pause(config: Build) -> None:
    """The pause is reached all the same, with the numbers of a run that wasn't killed."""
    calm = config(name="calm", stop_at_fraction=0.5)
    assert train(calm) == 0
    killed = config(name="killed", stop_at_fraction=0.5)
    codes, _ = ranks.run(killed, 1, [ranks.Fault("nanogpt.training.loop.train_step", 7, "SIGKILL")])
    assert codes == [-9]
    assert train(killed) == 0
    assert ranks.result(killed) == ranks.result(calm)


def test_a_pause_is_a_step_at_least(config: Build) -> None:
    for steps, share, goal in (
        (18, 1 / 9, 2),
        (20, 1 / 3, 7),
        (6, 3.0**-14, 1),
        (0, 0.5, 0),
        (900, 1 / 3, 300),
        (9, None, 9),
    ):
        assert config(stop_at_fraction=share).last_step(steps) == goal


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_shares_that_are_none(config: Build, share: float) -> None:
    values = json.loads(config().model_dump_json()) | {"stop_at_fraction": share}
    with pytest.raises(BadInput, match="stop_at_fraction"):
        from_dict(TrainConfig, values)
