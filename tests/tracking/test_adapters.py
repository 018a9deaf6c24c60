"""TensorBoard and Trackio, where they are installed: their own readers find each step once, also after kill -9."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import locate_run
from tests import ranks
from tests.ranks import Fault, Started
from tests.tracking.test_wandb_online import curve

PICTURE = Path(__file__).parents[2] / "docs" / "quickstart.png"
Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
KILL = [Fault("nanogpt.training.loop.train_step", n, "sleep 1") for n in (9, 10)]
KILL += [Fault("nanogpt.training.loop.train_step", 11, "SIGKILL")]


def killed_and_finished(built: TrainConfig, undisturbed: Reference, variables: dict[str, str]) -> None:
    assert Started(built, 1, KILL, variables).wait() == [-signal.SIGKILL]
    (locate_run(built) / "plots").mkdir()  # these trainings draw nothing
    shutil.copy(PICTURE, locate_run(built) / "plots" / "loss.png")
    again = Started(built, 1, [], variables)
    assert again.wait() == [0] and "warning" not in again.output(), again.output()
    assert ranks.result(built) == undisturbed()


def test_tensorboard(config: Build, undisturbed: Reference) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    built = config(**{"tracking.trackers": ["tensorboard"]})
    killed_and_finished(built, undisturbed, {})
    sizes = {"tensors": 0, "scalars": 0, "images": 0}
    events = reader.EventAccumulator(str(locate_run(built) / "tensorboard"), sizes)
    events.Reload()
    for name in ("loss", "lr", "val_loss", "tokens"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name])) for row in curve(built) if name in row], name
    assert [event.step for event in events.Tensors("sample/text_summary")] == [0, 5, 10, 15, 20]
    timing = read_rows(locate_run(built) / "timing.jsonl")
    rates = [(event.step, event.value, event.wall_time) for event in events.Scalars("tokens_per_second")]
    assert [(step, rate) for step, rate, _ in rates] == [
        (row["step"], pytest.approx(row["tokens_per_second"])) for row in timing
    ]
    evaluated = {0, 5, 10, 15, 20}
    times = {row["step"]: row["time"] for row in timing if row["step"] not in evaluated}
    assert {step: time for step, _, time in rates if step not in evaluated} == times
    (image,) = events.Images("loss_curve")
    assert image.encoded_image_string == PICTURE.read_bytes() and image.step == 20
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData
    found = {name: plugin.FromString(data) for name, data in events.PluginTagToContent("hparams").items()}
    settings = found["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["optimizer.lr"].number_value == built.optimizer.lr and settings["run.parameters"].number_value > 0
    metrics = found["_hparams_/experiment"].experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == {"val_loss", "val_bpb", "loss"}


def test_trackio(config: Build, undisturbed: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    built = config(**{"tracking.trackers": ["trackio"], "tracking.project": "tests"})
    killed_and_finished(built, undisturbed, {"TRACKIO_DIR": str(tmp_path / "trackio")})
    (name,) = storage.get_runs("tests")
    assert name.startswith(locate_run(built).name)
    logged = storage.get_logs("tests", name)
    found = [(row["step"], row.get("loss"), row.get("val_loss")) for row in logged if "tokens" in row]
    assert {row["step"] for row in logged if "sample" in row} == {0, 5, 10, 15, 20}
    assert [row["step"] for row in logged if "loss_curve" in row] == [20]
    assert found == [(row["step"], row.get("loss"), row.get("val_loss")) for row in curve(built)]
