"""Trackers. metrics.jsonl is the truth; each tracker shows a copy of it and is fed by a thread.

The training thread only sets an event. The tracker's thread reads metrics.jsonl and sends every step that the tracker
lacks, so nothing needs to be remembered about steps missed before a restart or while the tracker was unreachable. A
tracker that is unreachable, slow or dies costs one warning and no step.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from typing_extensions import assert_never

from nanogpt.config import TrackerName, TrackingConfig
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import RunMetadata, enabled_trackers
from nanogpt.tracking.tail import MetricsTail

MOST_SAMPLES = 1000  # samples that wait to be sent; older ones are dropped
GATHER = 0.2  # seconds in which rows are collected before they are sent together
SLACK = 15.0  # seconds beyond tracking.timeout in which a library may still report its own timeout
AGAIN = 600.0  # seconds until an unreachable tracker is tried again
FAILURES = (Exception, SystemExit)  # wandb raises SystemExit when its service process was killed
REQUIREMENTS = {"wandb": "wandb>=0.31,<1", "tensorboard": "tensorboard>=2.16", "trackio": "trackio>=0.40"}
Say = Callable[[str], None]


class TrackerBackend(Protocol):
    """Client of a tracker. Every method may block and may raise; all but `abandon` are called from one thread."""

    def start(self) -> int:
        """Connect. Return the last step that the tracker has, or -1."""
        ...

    def log_row(self, row: Row) -> None:
        """Send the metrics of a step, in increasing order of steps. `time`, if there, is in seconds since 1970."""
        ...

    def log_sample(self, step: int, text: str) -> None:
        """Send a sample that was drawn at `step`."""
        ...

    def finish(self, state: str, picture: Path | None) -> None:
        """Send what is left and close the run, which is `finished`, `stopped`, `failed` or `diverged`."""
        ...

    def abandon(self) -> None:
        """Interrupt the call that blocks. Called from another thread."""
        ...


def make_backend(name: TrackerName, metadata: RunMetadata, say: Say) -> TrackerBackend:
    """Return the backend of a tracker. Imports its library."""
    match name:
        case "wandb":
            from nanogpt.tracking.wandb import Wandb

            return Wandb(metadata, say)
        case "tensorboard":
            from nanogpt.tracking.tensorboard import TensorBoard

            return TensorBoard(metadata)
        case "trackio":
            from nanogpt.tracking.trackio import Trackio

            return Trackio(metadata)
        case _:
            assert_never(name)


def check_trackers(settings: TrackingConfig) -> None:
    """Raise BadEnvironment if a tracker is not installed, or if a required one lacks its API key."""
    names = enabled_trackers(settings)
    for name in names:
        if find_spec(name) is None:
            raise BadEnvironment(f"tracking.trackers: {name} is not installed: pip install '{REQUIREMENTS[name]}'")
    if "wandb" in names and settings.required:
        from nanogpt.tracking.wandb import check_api_key

        check_api_key(settings)


class TrackerThread:
    """A tracker and the thread that feeds it."""

    def __init__(
        self,
        name: TrackerName,
        metadata: RunMetadata,
        due: Callable[[int], bool],
        times: Mapping[int, float],
        say: Say,
        log: Say,
    ) -> None:
        """Start the thread.

        `due` tells if a step is evaluated, `times` when; `say` prints a line, `log` only adds it to log.txt.
        """
        self.name: TrackerName = name
        self.metadata, self.due, self.say, self.log = metadata, due, say, log
        self.samples: deque[tuple[int, str]] = deque(maxlen=MOST_SAMPLES)
        """(step, text) of samples to send."""
        self.backend: TrackerBackend | None = None
        """The backend while it is connected."""
        self.starting: TrackerBackend | None = None
        """The last backend that was started or is being started."""
        self.times = times
        self.rows = MetricsTail(metadata.path / "metrics.jsonl", due, times)
        self.last = -1
        """The last step that the tracker has."""
        self.retry_at = 0.0
        """Earliest time of the next connection, on the monotonic clock."""
        self.n_failures = 0
        self.warned = self.given_up = False
        self.error: BaseException | None = None
        """The error of the last attempt to connect."""
        self.ready, self.news, self.ended = Event(), Event(), Event()
        """The first attempt to connect is over; there are rows or samples; the run has ended."""
        self.state = ""
        """Final state of the run."""
        self.thread = Thread(target=self.run, name=f"{name} tracker", daemon=True)
        self.thread.start()

    def request_finish(self, state: str) -> None:
        """Ask the thread to send what is left and to end."""
        self.state = state
        self.ended.set()
        self.news.set()

    def give_up(self) -> None:
        """Stop waiting for a tracker that took too long."""
        what = "not everything was sent" if self.ready.is_set() else "it hadn't started"
        self.warn(TimeoutError(f"{what} when the run ended"))
        self.given_up = True
        if self.starting is not None:
            self.starting.abandon()

    def run(self) -> None:
        """Connect, then send rows and samples until the run has ended. This is the thread."""
        while not self.ended.is_set():
            self.news.clear()
            self.send()
            self.news.wait(AGAIN)
            self.ended.wait(GATHER)
        self.send()
        picture = self.metadata.path / "plots" / "loss.png"
        while self.backend is not None:
            try:
                self.backend.finish(self.state, picture if picture.exists() else None)
                return
            except TimeoutError as error:
                self.warn(error)
                self.backend.abandon()
                return
            except FAILURES as error:
                self.handle_failure(error)
                self.send()

    def send(self) -> None:
        """Connect if necessary, and send every row that the tracker lacks, and the samples of steps before now."""
        n_samples = len(self.samples)  # those that arrive while rows are sent belong to rows that come later
        try:
            if self.backend is None and not self.connect():
                return
            assert self.backend is not None
            for row in self.rows.read_steps():
                if row["step"] > self.last:
                    self.backend.log_row(row)
                    self.last = int(row["step"])
        except FAILURES as error:
            self.handle_failure(error)
            if self.n_failures == 1:
                self.send()
            return
        for _ in range(min(n_samples, len(self.samples))):
            try:
                self.backend.log_sample(*self.samples.popleft())
            except FAILURES as error:  # a lost sample is no reason to reconnect
                self.log_error(error)

    def connect(self) -> bool:
        """Start the backend, unless that failed lately. Return whether it is connected."""
        if self.given_up or time.monotonic() < self.retry_at:
            return False
        try:
            self.starting = make_backend(self.name, self.metadata, self.say)
            self.last = self.starting.start()
        except FAILURES as error:
            self.error, self.retry_at = error, time.monotonic() + AGAIN
            if self.ready.is_set() or not self.metadata.settings.required:
                self.warn(error)
            return False
        finally:
            self.ready.set()
        self.backend, self.error = self.starting, None
        self.rows = MetricsTail(self.metadata.path / "metrics.jsonl", self.due, self.times)
        if self.warned:
            self.say(f"{self.name}: reached again; steps that it lacks are sent")
        return True

    def handle_failure(self, error: BaseException) -> None:
        """Drop a backend that failed. The next `send` starts another one, after the first failure at once."""
        self.n_failures += 1
        self.log_error(error)
        failed, self.backend = self.backend, None
        if failed is not None:
            failed.abandon()
        if self.n_failures > 1:
            self.retry_at = time.monotonic() + AGAIN
            self.warn(error)

    def log_error(self, error: BaseException) -> None:
        self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")

    def warn(self, error: BaseException) -> None:
        """Log the error; the first time also print it, with the command that sends what is missing."""
        self.log_error(error)
        if not self.warned and not self.given_up:
            self.warned = True
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.say(
                f"warning: {self.name}: {one_line(lines[0], 200)}; training continues, and "
                f"`nanogpt sync {self.metadata.path}` sends what is missing"
            )


class Trackers:
    """All trackers of one start of a run. Only `wait_until_started` and `finish` block."""

    def __init__(self, metadata: RunMetadata, due: Callable[[int], bool], say: Say, log: Say) -> None:
        self.times: dict[int, float] = {}
        """Time of each evaluation, in seconds since 1970."""
        names = enabled_trackers(metadata.settings)
        self.threads = [TrackerThread(name, metadata, due, self.times, say, log) for name in names]

    def notify_row(self) -> None:
        """Tell the trackers that metrics.jsonl has another row."""
        for tracker in self.threads:
            tracker.news.set()

    def notify_sample(self, step: int, text: str) -> None:
        """Give the trackers a sample to send."""
        for tracker in self.threads:
            tracker.samples.append((step, text))
            tracker.news.set()

    def wait_until_started(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until every tracker has started, calling `beat` meanwhile. Raises BadEnvironment if one can't start."""
        for tracker in self.threads:
            deadline = time.monotonic() + tracker.metadata.settings.timeout + SLACK
            while not tracker.ready.wait(0.2) and time.monotonic() < deadline:
                beat()
            if tracker.error is not None or not tracker.ready.is_set():
                why = one_line(tracker.error or "didn't start in time", 400)
                raise BadEnvironment(f"tracking.required=true: {tracker.name}: {why}")

    def finish(self, state: str, seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Give the trackers `seconds` to send what is left, or until `hurry()`, and abandon those that need more."""
        for tracker in self.threads:
            tracker.request_finish(state)
        deadline = time.monotonic() + seconds
        for tracker in self.threads:
            while tracker.thread.is_alive() and (left := deadline - time.monotonic()) > 0 and not hurry():
                tracker.thread.join(min(left, 0.02))
        for tracker in self.threads:
            if tracker.thread.is_alive():
                tracker.give_up()
