"""TensorBoard and Trackio, where they are installed: their own readers find each step once, also after kill -9."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.run_directory import locate_run
from tests import ranks
from tests.ranks import Fault, Started
from tests.tracking.test_wandb_online import curve

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
KILL = [Fault("nanogpt.training.loop.train_step", n, "sleep 1") for n in (9, 10)]
KILL += [Fault("nanogpt.training.loop.train_step", 11, "SIGKILL")]


def killed_and_finished(built: TrainConfig, undisturbed: Reference, variables: dict[str, str]) -> None:
    assert Started(built, 1, KILL, variables).wait() == [-signal.SIGKILL]
    again = Started(built, 1, [], variables)
    assert again.wait() == [0] and "warning" not in again.output(), again.output()
    assert ranks.result(built) == undisturbed()


def test_tensorboard(config: Build, undisturbed: Reference) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    built = config(**{"tracking.trackers": ["tensorboard"]})
    killed_and_finished(built, undisturbed, {})
    events = reader.EventAccumulator(str(locate_run(built) / "tensorboard"), {"tensors": 0, "scalars": 0})
    events.Reload()
    for name in ("loss", "lr", "val_loss", "tokens"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name])) for row in curve(built) if name in row], name
    assert [event.step for event in events.Tensors("sample/text_summary")] == [0, 5, 10, 15, 20]


def test_trackio(config: Build, undisturbed: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    built = config(**{"tracking.trackers": ["trackio"], "tracking.project": "tests"})
    killed_and_finished(built, undisturbed, {"TRACKIO_DIR": str(tmp_path / "trackio")})
    (name,) = storage.get_runs("tests")
    assert name.startswith(locate_run(built).name)
    found = [(row["step"], row.get("loss"), row.get("val_loss")) for row in storage.get_logs("tests", name)]
    assert found == [(row["step"], row.get("loss"), row.get("val_loss")) for row in curve(built)]
