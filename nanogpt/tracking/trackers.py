"""Trackers beside the run directory. metrics.jsonl is the truth, a tracker is a copy of it, in a thread of its own.

The training only puts a word into a bounded queue. The thread reads metrics.jsonl and shows its tracker every step that
the tracker hasn't, so what was missed while the tracker was away, or before a restart, needs no memory of its own. A
tracker that can't be reached, is slow, refuses or dies costs one warning and no step.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Protocol

from typing_extensions import assert_never

from nanogpt.config import TrackerName, TrackingConfig
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import RunMetadata, enabled_trackers
from nanogpt.tracking.tail import MetricsTail

WAITING = 1000  # words in the queue; those beyond are dropped, and lost are only samples
GATHER = 0.2  # seconds in which rows are gathered before they are shown together
SLACK = 15.0  # seconds beyond tracking.timeout that a library may take to notice that it is over
AGAIN = 600.0  # seconds until a tracker that can't be reached is tried again
FAILURES = (Exception, SystemExit)  # the latter is how wandb says that its own process was killed
Say = Callable[[str], None]
Word = tuple[int, str] | None
"""A sample and its step, or only that there are rows."""


class TrackerBackend(Protocol):
    """One kind of tracker. Every method may take long and may raise; all but `abandon` are called from one thread."""

    def start(self) -> int:
        """Connect. Returns the last step the tracker has, or -1."""
        ...

    def row(self, row: Row) -> None:
        """Show a step, later than all before."""
        ...

    def text(self, step: int, text: str) -> None:
        """Show a sample that was drawn at `step`."""
        ...

    def finish(self, state: str, picture: Path | None) -> None:
        """The run is `finished`, `stopped`, `failed` or `diverged`: hand over everything."""
        ...

    def abandon(self) -> None:
        """From another thread: end whatever is being waited for."""
        ...


def make_backend(name: TrackerName, metadata: RunMetadata, say: Say) -> TrackerBackend:
    """Return the tracker of that name."""
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
    """Every tracker that was asked for is installed, and has what it needs if it is required. Raises BadEnvironment."""
    for name in enabled_trackers(settings):
        if find_spec(name) is None:
            raise BadEnvironment(f"tracking.trackers: {name} is not installed: pip install -e '.[{name}]'")
    if "wandb" in enabled_trackers(settings) and settings.required:
        from nanogpt.tracking.wandb import check_api_key

        check_api_key(settings)


class TrackerThread:
    """One tracker and its thread."""

    def __init__(
        self, name: TrackerName, metadata: RunMetadata, due: Callable[[int], bool], say: Say, log: Say
    ) -> None:
        self.name: TrackerName = name
        self.metadata, self.due, self.say, self.log = metadata, due, say, log
        self.queue: Queue[Word] = Queue(WAITING)
        self.backend: TrackerBackend | None = None
        self.starting: TrackerBackend | None = None
        """The tracker, also while it is being started."""
        self.rows = MetricsTail(metadata.path / "metrics.jsonl", due)
        self.last = -1
        """The last step the tracker has."""
        self.retry_at = 0.0
        """When to try to connect, on the monotonic clock."""
        self.n_failures = 0
        self.warned = self.given_up = False
        self.error: BaseException | None = None
        self.ready, self.ended = Event(), Event()
        self.state = ""
        """How the run ended, once it has."""
        self.thread = Thread(target=self.run, name=f"{name} tracker", daemon=True)
        self.thread.start()

    def notify(self, word: Word) -> None:
        """From the training: never waits."""
        with suppress(Full):
            self.queue.put_nowait(word)

    def request_finish(self, state: str) -> None:
        """From the training: show what is left and stop."""
        self.state = state
        self.ended.set()
        self.notify(None)

    def give_up(self) -> None:
        """From the training: it took too long."""
        what = "not everything was sent" if self.ready.is_set() else "it hadn't started"
        self.warn(TimeoutError(f"{what} when the run ended"))
        self.given_up = True
        if self.starting is not None:
            self.starting.abandon()

    def run(self) -> None:
        """The thread."""
        while not self.ended.is_set():
            self.send(self.wait_for_samples())
        self.send(self.wait_for_samples(wait=False))
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
                self.send([])

    def wait_for_samples(self, wait: bool = True) -> list[tuple[int, str]]:
        """The samples among the words that come until GATHER seconds after the first."""
        samples: list[tuple[int, str]] = []
        with suppress(Empty):
            if wait and self.ready.is_set():
                samples += [word for word in [self.queue.get(timeout=AGAIN)] if word]
                self.ended.wait(GATHER)
            while True:
                samples += [word for word in [self.queue.get_nowait()] if word]
        return samples

    def send(self, samples: list[tuple[int, str]]) -> None:
        """Connect if need be, and show everything the tracker hasn't."""
        try:
            if self.backend is None and not self.connect():
                return
            assert self.backend is not None
            for row in self.rows.read_steps():
                if row["step"] > self.last:
                    self.backend.row(row)
                    self.last = int(row["step"])
        except FAILURES as error:
            self.handle_failure(error)
            if self.n_failures == 1:
                self.send(samples)  # it may have died alone: a new one is told everything again
            return
        for step, text in samples:
            try:
                self.backend.text(step, text)
            except FAILURES as error:  # a sample that isn't shown costs no step of the curve
                self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")

    def connect(self) -> bool:
        """Start the tracker, unless that was tried lately. Returns whether it runs."""
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
        self.rows = MetricsTail(self.rows.path, self.due)
        if self.warned:
            self.say(f"{self.name}: reached again, it is shown what it missed")
        return True

    def handle_failure(self, error: BaseException) -> None:
        """The tracker failed while it ran: it is started again at once, and if that was done before, after a while."""
        self.n_failures += 1
        self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")
        lost, self.backend = self.backend, None
        if lost is not None:
            lost.abandon()
        if self.n_failures > 1:
            self.retry_at = time.monotonic() + AGAIN
            self.warn(error)

    def warn(self, error: BaseException) -> None:
        """Tell it, once, and how to send what is missing."""
        self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")
        if not self.warned and not self.given_up:
            self.warned = True
            why = one_line(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 200)
            self.say(
                f"warning: {self.name}: {why}; all else goes on, and "
                f"`nanogpt sync {self.metadata.path}` sends what is missing"
            )


class Trackers:
    """All trackers of one start of a run."""

    def __init__(self, metadata: RunMetadata, due: Callable[[int], bool], say: Say, log: Say) -> None:
        self.threads = [TrackerThread(name, metadata, due, say, log) for name in enabled_trackers(metadata.settings)]

    def notify_row(self) -> None:
        """metrics.jsonl has another row."""
        for tracker in self.threads:
            tracker.notify(None)

    def notify_sample(self, step: int, text: str) -> None:
        """A sample was drawn."""
        for tracker in self.threads:
            tracker.notify((step, text))

    def wait_until_started(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until every tracker has started. Raises BadEnvironment with the reason of the first that couldn't."""
        for tracker in self.threads:
            deadline = time.monotonic() + tracker.metadata.settings.timeout + SLACK
            while not tracker.ready.wait(0.2) and time.monotonic() < deadline:
                beat()
            if tracker.error is not None or not tracker.ready.is_set():
                why = one_line(tracker.error or "didn't start in time", 400)
                raise BadEnvironment(f"tracking.required=true: {tracker.name}: {why}")

    def finish(self, state: str, seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Let every tracker hand over what it has, for so long, and give up on it when that, or `hurry`, is over."""
        for tracker in self.threads:
            tracker.request_finish(state)
        deadline = time.monotonic() + seconds
        for tracker in self.threads:
            while tracker.thread.is_alive() and (left := deadline - time.monotonic()) > 0 and not hurry():
                tracker.thread.join(min(left, 0.02))
        for tracker in self.threads:
            if tracker.thread.is_alive():
                tracker.give_up()
