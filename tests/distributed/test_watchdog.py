"""The watcher's arithmetic: what ends a rank, and what doesn't."""

import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogpt.distributed import watchdog as watching
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.distributed.watchdog import Watchdog
from nanogpt.run_state import is_alive


class Gone(Exception):
    """In place of the end of the process."""


@pytest.fixture
def flag() -> Generator[StopFlag, None, None]:
    with StopFlag() as one:
        yield one


def watch(
    world: int, flag: StopFlag, folder: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool = False
) -> Watchdog:
    def leave(code: int) -> None:
        raise Gone(code)

    monkeypatch.setattr(watching.os, "_exit", leave)
    one = Watchdog(ProcessGroup(RankEnv(0, world)))
    one.start(flag, folder, timeout=10.0, stop_timeout=3.0, compiles=compiles)
    return one


def test_patience_is_five_times_as_long_before_the_first_step(
    flag: StopFlag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = watch(2, flag, tmp_path, monkeypatch)
    one.heartbeat(100)  # a run that continues: no step of this start is done yet
    one.since_any_progress = 49.0
    one.check_timeouts()
    one.heartbeat(101)
    one.since_any_progress = 9.0
    one.check_timeouts()
    one.since_any_progress = 11.0
    with pytest.raises(Gone, match="7"):
        one.check_timeouts()
    assert "no rank got anywhere for 11 s at step 101" in (tmp_path / "stacks-rank-0.txt").read_text()


def test_compiling_is_no_hang_however_long_it_takes(
    flag: StopFlag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch really compiles, and meanwhile, at each of two shapes, an hour passes without a beat of the main thread."""
    one, beats = watch(2, flag, tmp_path, monkeypatch, compiles=True), list[int]()
    monkeypatch.setattr(one.group, "exchange_progress", beats.append)
    one.heartbeat(0)
    one.heartbeat(1)

    def compile_for_an_hour(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        one.since_own_heartbeat = one.since_any_progress = 3600.0
        one.check_timeouts()
        one.check_peers()
        one.check_peers()
        one.since_own_heartbeat = 3600.0
        with pytest.raises(Gone, match="7"), monkeypatch.context() as patch:
            patch.setattr(one.group, "dead_local_ranks", lambda: [1])
            one.check_peers()
        return graph

    double = torch.compile(torch.nn.ReLU(), backend=compile_for_an_hour, dynamic=False)
    double(torch.ones(2))
    double(torch.ones(3))
    assert beats == [3, 4, 5, 6, 7, 8], "the others see that it lives"
    assert one.since_any_progress == 0.0
    one.since_any_progress = 11.0
    with pytest.raises(Gone, match="7"):
        one.check_timeouts()


def test_a_watch_that_ended_hears_of_no_compilation(
    flag: StopFlag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may train several times."""
    one, compiling = watch(2, flag, tmp_path, monkeypatch, compiles=True), list[int]()
    one.thread.start()

    def note(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compiling.append(one.compilations)
        return graph

    double = torch.compile(torch.nn.ReLU(), backend=note, dynamic=False)
    double(torch.ones(2))
    one.stop()
    double(torch.ones(3))
    assert compiling == [1, 0]


def test_one_rank_alone_may_take_its_time(flag: StopFlag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = watch(1, flag, tmp_path, monkeypatch)
    one.since_any_progress = 1e9
    one.check_timeouts()
    one.since_signal = 3.5
    with pytest.raises(Gone, match="85"):
        one.check_timeouts()


def test_time_that_passes_while_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour that passes within one tick, as after SIGSTOP or a laptop's sleep, counts as one tick."""
    one = Watchdog(ProcessGroup())
    clock = [0.0]

    def select(*_: object) -> tuple[list[object], list[object], list[object]]:
        clock[0] += 3600.0 if clock[0] == 0.25 else 0.25
        if clock[0] > 3601:
            one.stopped.set()
        return [], [], []

    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(watching, "select", SimpleNamespace(select=select))
    one.run()
    assert clock[0] > 3601 and one.since_own_heartbeat == one.since_any_progress == 0.25 * 6


def test_signals_raise_the_level_and_keep_the_first_reason(flag: StopFlag) -> None:
    assert flag.level == Stop.NO
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (flag.level, flag.reason) == (Stop.SAVE_AND_STOP, "SIGUSR1")
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.level == Stop.SAVE_AND_STOP, "the same signal from another side"
    time.sleep(0.15)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (flag.level, flag.reason) == (Stop.STOP_WITHOUT_SAVING, "SIGUSR1")
    assert flag.wakeup.recv(16)[:1] == bytes([signal.SIGUSR1])


def test_hang_up_stays_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as one:
            os.kill(os.getpid(), signal.SIGHUP)
            assert one.level == Stop.NO
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_ended_but_was_not_waited_for_is_gone() -> None:
    assert is_alive(os.getpid())
    child = os.fork()
    if child == 0:
        os._exit(0)
    while is_alive(child):
        time.sleep(0.01)
    os.waitpid(child, 0)
    assert not is_alive(child)
