"""Trackers beside the run directory. metrics.jsonl is the truth, a tracker is a mirror of it, in a thread of its own.

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
from nanogpt.tracking.run_metadata import About, wanted
from nanogpt.tracking.tail import Follow

WAITING = 1000  # words in the queue; those beyond are dropped, and lost are only samples
GATHER = 0.2  # seconds in which rows are gathered before they are shown together
SLACK = 15.0  # seconds beyond tracking.timeout that a library may take to notice that it is over
AGAIN = 600.0  # seconds until a tracker that can't be reached is tried again
FAILURES = (Exception, SystemExit)  # the latter is how wandb says that its own process was killed
Say = Callable[[str], None]
Word = tuple[int, str] | None
"""A sample and its step, or only that there are rows."""


class Backend(Protocol):
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


def backend(name: TrackerName, about: About, say: Say) -> Backend:
    """Return the tracker of that name."""
    match name:
        case "wandb":
            from nanogpt.tracking.wandb import Wandb

            return Wandb(about, say)
        case "tensorboard":
            from nanogpt.tracking.tensorboard import TensorBoard

            return TensorBoard(about)
        case "trackio":
            from nanogpt.tracking.trackio import Trackio

            return Trackio(about)
        case _:
            assert_never(name)


def refuse_missing(settings: TrackingConfig) -> None:
    """Every tracker that was asked for is installed, and has what it needs if it is required. Raises BadEnvironment."""
    for name in wanted(settings):
        if find_spec(name) is None:
            raise BadEnvironment(f"tracking.trackers: {name} is not installed: pip install -e '.[{name}]'")
    if "wandb" in wanted(settings) and settings.required:
        from nanogpt.tracking.wandb import refuse_no_key

        refuse_no_key(settings)


class Mirror:
    """One tracker and its thread."""

    def __init__(self, name: TrackerName, about: About, due: Callable[[int], bool], say: Say, log: Say) -> None:
        self.name: TrackerName = name
        self.about, self.due, self.say, self.log = about, due, say, log
        self.queue: Queue[Word] = Queue(WAITING)
        self.backend: Backend | None = None
        self.found: Backend | None = None
        """The tracker, also while it is being started."""
        self.follow = Follow(about.path / "metrics.jsonl", due)
        self.last = -1
        """The last step the tracker has."""
        self.again = 0.0
        """When to try to connect, on the monotonic clock."""
        self.lost = 0
        self.told = self.given_up = False
        self.error: BaseException | None = None
        self.ready, self.ended = Event(), Event()
        self.state = ""
        """How the run ended, once it has."""
        self.thread = Thread(target=self.run, name=f"{name} mirror", daemon=True)
        self.thread.start()

    def put(self, word: Word) -> None:
        """From the training: never waits."""
        with suppress(Full):
            self.queue.put_nowait(word)

    def end(self, state: str) -> None:
        """From the training: show what is left and stop."""
        self.state = state
        self.ended.set()
        self.put(None)

    def give_up(self) -> None:
        """From the training: it took too long."""
        what = "not everything was sent" if self.ready.is_set() else "it hadn't started"
        self.warn(TimeoutError(f"{what} when the run ended"))
        self.given_up = True
        if self.found is not None:
            self.found.abandon()

    def run(self) -> None:
        """The thread."""
        while not self.ended.is_set():
            self.show(self.words())
        self.show(self.words(wait=False))
        picture = self.about.path / "plots" / "loss.png"
        while self.backend is not None:
            try:
                self.backend.finish(self.state, picture if picture.exists() else None)
                return
            except TimeoutError as error:
                self.warn(error)
                self.backend.abandon()
                return
            except FAILURES as error:
                self.lose(error)
                self.show([])

    def words(self, wait: bool = True) -> list[tuple[int, str]]:
        """The samples among the words that come until GATHER seconds after the first."""
        samples: list[tuple[int, str]] = []
        with suppress(Empty):
            if wait and self.ready.is_set():
                samples += [word for word in [self.queue.get(timeout=AGAIN)] if word]
                self.ended.wait(GATHER)
            while True:
                samples += [word for word in [self.queue.get_nowait()] if word]
        return samples

    def show(self, samples: list[tuple[int, str]]) -> None:
        """Connect if need be, and show everything the tracker hasn't."""
        try:
            if self.backend is None and not self.connect():
                return
            assert self.backend is not None
            for row in self.follow.more():
                if row["step"] > self.last:
                    self.backend.row(row)
                    self.last = int(row["step"])
        except FAILURES as error:
            self.lose(error)
            if self.lost == 1:
                self.show(samples)  # it may have died alone: a new one is told everything again
            return
        for step, text in samples:
            try:
                self.backend.text(step, text)
            except FAILURES as error:  # a sample that isn't shown costs no step of the curve
                self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")

    def connect(self) -> bool:
        """Start the tracker, unless that was tried lately. Returns whether it runs."""
        if self.given_up or time.monotonic() < self.again:
            return False
        try:
            self.found = backend(self.name, self.about, self.say)
            self.last = self.found.start()
        except FAILURES as error:
            self.error, self.again = error, time.monotonic() + AGAIN
            if self.ready.is_set() or not self.about.settings.required:
                self.warn(error)
            return False
        finally:
            self.ready.set()
        self.backend, self.error = self.found, None
        self.follow = Follow(self.follow.path, self.due)
        if self.told:
            self.say(f"{self.name}: reached again, it is shown what it missed")
        return True

    def lose(self, error: BaseException) -> None:
        """The tracker failed while it ran: it is started again at once, and if that was done before, after a while."""
        self.lost += 1
        self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")
        lost, self.backend = self.backend, None
        if lost is not None:
            lost.abandon()
        if self.lost > 1:
            self.again = time.monotonic() + AGAIN
            self.warn(error)

    def warn(self, error: BaseException) -> None:
        """Tell it, once, and how to send what is missing."""
        self.log(f"{self.name}: {type(error).__name__}: {one_line(error, 400)}")
        if not self.told and not self.given_up:
            self.told = True
            why = one_line(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 200)
            self.say(
                f"warning: {self.name}: {why}; all else goes on, and "
                f"`nanogpt sync {self.about.path}` sends what is missing"
            )


class Mirrors:
    """All trackers of one start of a run."""

    def __init__(self, about: About, due: Callable[[int], bool], say: Say, log: Say) -> None:
        self.all = [Mirror(name, about, due, say, log) for name in wanted(about.settings)]

    def row(self) -> None:
        """metrics.jsonl has another row."""
        for mirror in self.all:
            mirror.put(None)

    def sample(self, step: int, text: str) -> None:
        """A sample was drawn."""
        for mirror in self.all:
            mirror.put((step, text))

    def require(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until every tracker has started. Raises BadEnvironment with the reason of the first that couldn't."""
        for mirror in self.all:
            deadline = time.monotonic() + mirror.about.settings.timeout + SLACK
            while not mirror.ready.wait(0.2) and time.monotonic() < deadline:
                beat()
            if mirror.error is not None or not mirror.ready.is_set():
                why = one_line(mirror.error or "didn't start in time", 400)
                raise BadEnvironment(f"tracking.required=true: {mirror.name}: {why}")

    def finish(self, state: str, seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Let every tracker hand over what it has, for so long, and give up on it when that, or `hurry`, is over."""
        for mirror in self.all:
            mirror.end(state)
        deadline = time.monotonic() + seconds
        for mirror in self.all:
            while mirror.thread.is_alive() and (left := deadline - time.monotonic()) > 0 and not hurry():
                mirror.thread.join(min(left, 0.02))
        for mirror in self.all:
            if mirror.thread.is_alive():
                mirror.give_up()
