"""The thread between metrics.jsonl and a tracker, with trackers that are slow, refuse, hang and die."""

import time
from collections.abc import Callable
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest

from cli.argv import collect_targets
from cli.sweep_request import read_configs
from nanogpt.config import SyncConfig, TrackingConfig, TrainConfig
from nanogpt.errors import BadEnvironment
from nanogpt.metrics_file import Row, RowLog
from nanogpt.tracking import trackers
from nanogpt.tracking.run_metadata import (
    RunMetadata,
)
from nanogpt.tracking.tail import MetricsTail
from nanogpt.tracking.trackers import Trackers, check_trackers

Build = Callable[..., TrainConfig]


class Tracker:
    """Remembers what it was shown over all its connections; `plan` says what goes wrong."""

    def __init__(self, **plan: Any) -> None:
        self.plan = plan
        self.rows: list[Row] = []
        self.threads: set[str] = set()
        self.starts = self.calls = 0
        self.texts: list[tuple[int, str]] = []
        self.state = ""
        self.released = False

    def start(self) -> int:
        self.threads.add(current_thread().name)
        self.starts += 1
        if self.starts <= self.plan.get("refuse", 0):
            raise ConnectionError("refused\nin two lines")
        return int(self.rows[-1]["step"]) if self.rows else -1

    def log_row(self, row: Row) -> None:
        self.threads.add(current_thread().name)
        self.calls += 1
        if self.calls in self.plan.get("die", ()):
            raise ConnectionResetError("its service has died")
        while self.plan.get("hang") and not self.released:
            time.sleep(0.01)
        time.sleep(self.plan.get("slow", 0))
        self.rows.append(dict(row))

    def log_sample(self, step: int, text: str) -> None:
        self.threads.add(current_thread().name)
        if self.plan.get("mute"):
            raise ValueError("no samples here")
        self.texts.append((step, text))

    def finish(self, state: str, picture: Path | None) -> None:
        self.threads.add(current_thread().name)
        self.state = state

    def abandon(self) -> None:
        self.released = True


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]) -> Callable[[Tracker], Trackers]:
    def start(tracker: Tracker, **settings: Any) -> Trackers:
        monkeypatch.setattr(trackers, "make_backend", lambda *_: tracker)
        tracking = TrackingConfig(trackers=("wandb",), **settings)
        facts = RunMetadata(tmp_path, "id", "name", None, {}, tracking)
        return Trackers(facts, lambda step: step % 10 == 0, told.append, lambda _: None)

    return start


def train(folder: Path, shown: Trackers, steps: range = range(1, 41)) -> None:
    """Write rows as a training does, evaluated at every tenth step."""
    log = RowLog(folder / "metrics.jsonl")
    for step in steps:
        log.append({"step": step, "loss": 1 / step})
        shown.notify_row()
        if step % 10 == 0:
            log.append({"step": step, "val_loss": 2 / step})
            shown.notify_row()
            shown.notify_sample(step, "text")


WHOLE = [{"step": n, "loss": 1 / n} | ({"val_loss": 2 / n} if n % 10 == 0 else {}) for n in range(1, 41)]


def test_every_step_is_shown_once(tmp_path: Path, begin: Any, told: list[str]) -> None:
    tracker = Tracker()
    shown = begin(tracker)
    train(tmp_path, shown)
    shown.finish("finished", 5)
    assert tracker.rows == WHOLE and tracker.state == "finished" and told == []
    assert tracker.texts == [(step, "text") for step in (10, 20, 30, 40)]
    assert tracker.threads == {"wandb tracker"}, "never in the way of a step"


def test_a_slow_tracker_holds_up_nothing(tmp_path: Path, begin: Any, told: list[str]) -> None:
    tracker = Tracker(slow=0.05)
    shown = begin(tracker)
    train(tmp_path, shown)
    assert len(tracker.rows) < len(WHOLE), "the steps are ahead of it"
    shown.finish("finished", 5)
    assert tracker.rows == WHOLE and told == []


class EndsWhileLookedAt:
    """A thread that is alive at the first look and has ended at every later one."""

    def __init__(self) -> None:
        self.looks = 0

    def is_alive(self) -> bool:
        self.looks += 1
        return self.looks == 1

    def join(self, timeout: float) -> None:
        assert timeout >= 0


def test_a_thread_that_ends_between_two_looks(begin: Any, told: list[str]) -> None:
    shown = begin(Tracker())
    for tracker in shown.threads:
        tracker.request_finish("finished")
        tracker.thread.join(10)
        tracker.thread = EndsWhileLookedAt()
    shown.finish("finished", 5)
    assert told == []


def test_a_tracker_that_is_behind_loses_no_row(
    tmp_path: Path, begin: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "MOST_SAMPLES", 3)
    tracker = Tracker(slow=0.01)
    shown = begin(tracker)
    train(tmp_path, shown)
    assert len(shown.threads[0].samples) <= 3
    shown.finish("finished", 5)
    assert tracker.rows == WHOLE and told == []


def test_a_tracker_that_dies_once_is_started_again(tmp_path: Path, begin: Any, told: list[str]) -> None:
    tracker = Tracker(die=(17,))
    shown = begin(tracker)
    train(tmp_path, shown)
    shown.finish("stopped", 5)
    assert tracker.rows == WHOLE and tracker.starts == 2 and tracker.state == "stopped" and told == []


def test_a_tracker_that_keeps_dying_costs_one_warning(tmp_path: Path, begin: Any, told: list[str]) -> None:
    tracker = Tracker(die=range(5, 1000))
    shown = begin(tracker)
    train(tmp_path, shown)
    shown.finish("finished", 5)
    assert tracker.rows == WHOLE[:4] and tracker.starts == 2
    assert len(told) == 1 and told[0].startswith("warning: wandb: its service has died; training continues")


def test_a_tracker_that_cannot_start_is_tried_again_later(
    tmp_path: Path, begin: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "AGAIN", 0.3)
    tracker = Tracker(refuse=2)
    shown = begin(tracker)
    train(tmp_path, shown, range(1, 21))
    while tracker.starts < 3:
        time.sleep(0.02)
        shown.notify_row()
    train(tmp_path, shown, range(21, 41))
    shown.finish("finished", 5)
    assert tracker.rows == WHOLE
    assert [line.partition(":")[0] for line in told] == ["warning", "wandb"] and "wandb: refused; " in told[0]


def test_a_tracker_that_hangs_is_given_up(tmp_path: Path, begin: Any, told: list[str]) -> None:
    tracker = Tracker(hang=True)
    shown = begin(tracker)
    train(tmp_path, shown)
    shown.finish("finished", 0.3)
    assert tracker.released
    assert len(told) == 1 and "not everything was sent when the run ended" in told[0]
    hurried = begin(Tracker(hang=True))
    hurried.finish("stopped", 60, lambda: True)


def test_several_trackers_do_not_wait_for_each_other(
    tmp_path: Path, begin: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, works = Tracker(hang=True), Tracker()
    facts = RunMetadata(tmp_path, "id", "name", None, {}, TrackingConfig(trackers=("wandb", "tensorboard")))
    monkeypatch.setattr(trackers, "make_backend", lambda name, *_: hangs if name == "wandb" else works)
    shown = Trackers(facts, lambda step: step % 10 == 0, told.append, lambda _: None)
    train(tmp_path, shown)
    shown.finish("finished", 0.5)
    assert works.rows == WHOLE and works.state == "finished"
    assert len(told) == 1 and told[0].startswith("warning: wandb: ")


def test_a_sample_that_is_refused_costs_no_row(tmp_path: Path, begin: Any, told: list[str]) -> None:
    tracker = Tracker(mute=True)
    shown = begin(tracker)
    train(tmp_path, shown)
    shown.finish("finished", 5)
    assert tracker.rows == WHOLE and tracker.starts == 1 and told == []


def test_a_required_tracker_must_start(begin: Any, told: list[str]) -> None:
    begin(Tracker(), required=True).wait_until_started()
    with pytest.raises(BadEnvironment, match=r"tracking\.required=true: wandb: refused"):
        begin(Tracker(refuse=1), required=True).wait_until_started()
    assert told == []


def test_the_row_of_a_step_waits_for_its_evaluation(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "metrics.jsonl")
    follow = MetricsTail(log.path, lambda step: step % 10 == 0)
    assert list(follow.read_steps()) == []
    log.append({"step": 9, "loss": 1.0})
    log.append({"step": 10, "loss": 0.9})
    assert [row["step"] for row in follow.read_steps()] == [9]
    log.append({"step": 10, "val_loss": 0.8})
    with log.path.open("a") as file:
        file.write('{"step": 12, "lo')
    assert list(follow.read_steps()) == [{"step": 10, "loss": 0.9, "val_loss": 0.8}]
    log.rewind(9, 9)  # written anew, as by a start
    assert [row["step"] for row in follow.read_steps()] == [9]


def test_a_step_has_its_speed_and_its_own_time(tmp_path: Path) -> None:
    """A row's time is that in timing.jsonl; an evaluation's is that of this process, else of the last row before it."""
    timing, log = RowLog(tmp_path / "timing.jsonl"), RowLog(tmp_path / "metrics.jsonl")
    times: dict[int, float] = {}
    live = MetricsTail(log.path, lambda step: step % 10 == 0, times)
    times[0] = 100.5
    log.append({"step": 0, "val_loss": 3.0})
    assert list(live.read_steps()) == [{"step": 0, "val_loss": 3.0, "time": 100.5}]
    for step in (4, 8):
        timing.append({"step": step, "time": 100.0 + step, "tokens_per_second": 7.0, "mfu": 0.5})
        log.append({"step": step, "loss": 2.0})
    times[10] = 115.0
    log.append({"step": 10, "val_loss": 1.0})
    speed = {"loss": 2.0, "tokens_per_second": 7.0, "mfu": 0.5}
    steps = [{"step": 4, "time": 104.0} | speed, {"step": 8, "time": 108.0} | speed]
    assert list(live.read_steps()) == [*steps, {"step": 10, "val_loss": 1.0, "time": 115.0}]
    later = MetricsTail(log.path, lambda step: step % 10 == 0)  # as after a restart
    assert list(later.read_steps()) == [
        {"step": 0, "val_loss": 3.0},
        *steps,
        {"step": 10, "val_loss": 1.0, "time": 108.0},
    ]
    timing.rewind(4)
    log.rewind(4)
    timing.append({"step": 8, "time": 200.0, "tokens_per_second": 9.0})
    log.append({"step": 8, "loss": 2.0})
    assert [row["time"] for row in live.read_steps()][-2:] == [104.0, 200.0]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "trackio" else object())
    check_trackers(TrackingConfig(trackers=("wandb",)))
    with pytest.raises(BadEnvironment, match=r"trackio is not installed: pip install 'trackio>=0.40'"):
        check_trackers(TrackingConfig(trackers=("wandb", "trackio")))


def test_runs_to_sync_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=3").mkdir()
    for name in ("${oc.env:HOME}", "it's", "lr=3", "a,b"):
        (config,) = read_configs("sync", SyncConfig, collect_targets([name, "timeout=5"], "runs"))
        assert (config.runs, config.timeout) == ((name,), 5)
