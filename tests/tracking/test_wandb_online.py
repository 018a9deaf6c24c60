"""The real W&B client against a server on loopback: each step arrives once, whatever happens, and training never waits.

`server.py` is the server. What is trained is compared with a run that has no tracker: same rows, same weights.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import TrainConfig
from nanogpt.run_directory import locate_run
from nanogpt.tracking.tail import MetricsTail
from tests import ranks
from tests.commands import command
from tests.ranks import HANG, Fault, Started
from tests.tracking.server import KEY, Bucket, Server

ROOT = Path(__file__).parents[2]
Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]


def halt(gate: Path) -> list[Fault]:
    """Halt the training at step 9 until the file exists, so that rows can be sent."""
    return [Fault("nanogpt.training.loop.train_step", 9, f"until {gate}")]


@pytest.fixture
def servers() -> Generator[Callable[[], Server], None, None]:
    """Return a function that starts a server; all end with the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Server())


@pytest.fixture
def server(servers: Callable[[], Server]) -> Server:
    return servers()


@pytest.fixture
def tracked(config: Build) -> Build:
    """Return configs of runs with W&B."""
    return lambda **changes: config(**{"tracking.trackers": ["wandb"], "tracking.timeout": 30.0} | changes)


def environment(server: Server) -> dict[str, str]:
    """Return variables that make the client use the server, without delay."""
    return {
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": KEY,
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        "WANDB_X_STATS_SAMPLING_INTERVAL": "1",
    }


def start(config: TrainConfig, server: Server, faults: list[Fault] | None = None) -> Started:
    return Started(config, 1, faults, environment(server))


def until(true: Callable[[], bool], seconds: float = HANG) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def only(server: Server) -> Bucket:
    """Return the only run of the server."""
    (bucket,) = server.buckets.values()
    return bucket


def has_rows(server: Server) -> bool:
    """Return whether the server has the beginning of the curve: the client sends once a second."""
    return bool(server.buckets) and len(only(server).history()) > 2


CLOCK = ("time", "tokens_per_second", "mfu")  # of a row: a step that a restart repeats has other values


def curve(config: TrainConfig) -> list[dict[str, float]]:
    """Return what a tracker of a finished run should have, without what depends on the clock."""
    follow = MetricsTail(locate_run(config) / "metrics.jsonl", lambda step: config.eval.is_due(step, 20))
    return plain(list(follow.read_steps()))


def plain(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return rows without what W&B adds, without samples, and without what depends on the clock."""
    return [{key: row[key] for key in row if not key.startswith(("_", "samples", *CLOCK))} for row in rows]


def has_curve(server: Server, config: TrainConfig) -> bool:
    """Return whether the server has each step exactly once, with all its numbers."""
    bucket = only(server)
    rows = plain(bucket.history())
    return rows == curve(config) and [row["_step"] for row in bucket.history()] == [row["step"] for row in rows]


def sync(server: Server, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return command("-m", "cli", "sync", *words, folder=ROOT, **environment(server), **more)


def test_each_step_arrives_once(tracked: Build, undisturbed: Reference, server: Server) -> None:
    built = tracked(**{"tracking.tags": ["a", "b"], "tracking.entity": "me", "tracking.job_type": "try"})
    started = start(built, server)
    assert started.wait() == [0], started.output()
    assert ranks.result(built) == undisturbed()
    assert has_curve(server, built)
    assert "warning" not in started.output() and f"{server.url}/me/nanogpt-lab/runs/" in started.output()
    sent, bucket = only(server).fields, only(server)
    assert (sent["displayName"], sent["jobType"], sent["tags"]) == (locate_run(built).name, "try", ["a", "b"])
    assert "groupName" not in sent, "a folder called runs is no study"
    assert bucket.exit_codes == [0] and not bucket.preempting and not bucket.overwritten
    assert bucket.config()["optimizer"]["lr"] == 0.01 and bucket.config()["data"]["source"] == "corpus.txt"
    axes = json.loads(sent["config"])["_wandb"]["value"]["m"]
    assert {axis.get("1") or axis.get("2") for axis in axes} == {"step", "tokens", "val_loss", "*"}
    kept = json.loads((locate_run(built) / "wandb.json").read_text())
    assert kept["id"] in server.buckets and kept["last"] == 20


@pytest.mark.slow
def test_f26_a_server_that_cannot_be_used_costs_one_warning(
    tracked: Build, undisturbed: Reference, servers: Callable[[], Server], tmp_path: Path
) -> None:
    """Kinds of it at the same time; later one of the runs is sent after all."""
    faults: tuple[Any, ...] = ("down", "401", "500", "garbage", "stall")
    by_fault = {fault: servers() for fault in faults}
    expected = undisturbed()
    built = {fault: tracked(runs_dir=str(tmp_path / fault / "runs"), **{"tracking.timeout": 1.0}) for fault in faults}
    for fault, server in by_fault.items():
        server.fault = fault if fault != "down" else "none"
    by_fault["down"].die()
    gate = tmp_path / "gate"
    started = {fault: start(built[fault], server, halt(gate)) for fault, server in by_fault.items()}
    until(lambda: all("warning" in one.output() or not one.alive() for one in started.values()))
    gate.touch()
    for fault in faults:
        assert started[fault].wait() == [0], started[fault].output()
        assert ranks.result(built[fault]) == expected
        output, again = started[fault].output(), f"`nanogpt sync {locate_run(built[fault])}`"
        why = "the API key was rejected (401)" if fault == "401" else "the server can't be used"
        assert f"warning: wandb: {why}" in output and f"{again} sends what is missing" in output, output
        assert output.count("warning: ") == 1, output
    server, late = by_fault["down"], str(locate_run(built["down"]))
    refused = sync(server, late, "timeout=1")
    assert refused.returncode == 5 and "wandb: the server can't be used" in refused.stderr
    server.revive()
    done = sync(server, late)
    assert done.returncode == 0 and "13 steps sent" in done.stdout, done.stderr
    assert has_curve(server, built["down"]) and only(server).exit_codes == [0]
    assert "nothing was missing" in sync(server, late).stdout and has_curve(server, built["down"])


@pytest.mark.slow
@pytest.mark.parametrize("names", [("dies", "service"), ("500", "away")], ids=str)
def test_f26_a_server_that_goes_in_the_middle(
    tracked: Build, undisturbed: Reference, servers: Callable[[], Server], tmp_path: Path, names: tuple[str, ...]
) -> None:
    """For good, in two ways; for a while; and (F27) the client's own service, which Slurm's TERM reaches too."""
    by_name, expected = {name: servers() for name in names}, undisturbed()
    built = {
        name: tracked(
            runs_dir=str(tmp_path / name / "runs"), **{"tracking.timeout": 30.0 if name in ("away", "service") else 3.0}
        )
        for name in names
    }
    gate = tmp_path / "gate"
    started = {name: start(built[name], server, halt(gate)) for name, server in by_name.items()}
    until(lambda: all(has_rows(server) for server in by_name.values()))
    for name, server in by_name.items():
        if name == "500":
            server.fault = "500"
        elif name == "service":
            for pid in children(started[name]):
                os.kill(pid, signal.SIGTERM)
        else:
            server.die()
    gate.touch()
    time.sleep(0.3)
    if "away" in names:
        by_name["away"].revive()
    for name in names:
        assert started[name].wait() == [0], started[name].output()
        assert ranks.result(built[name]) == expected
        lost = name in ("dies", "500")
        assert started[name].output().count("warning: ") == lost, started[name].output()
        steps = [row["_step"] for row in only(by_name[name]).history()]
        assert has_curve(by_name[name], built[name]) != lost, f"{name}: {steps}"
        assert lost or only(by_name[name]).starts == (2 if name == "service" else 1)
    if "dies" in names:
        by_name["dies"].revive()
        assert sync(by_name["dies"], str(locate_run(built["dies"]))).returncode == 0
        assert has_curve(by_name["dies"], built["dies"])


@pytest.mark.slow
def test_f28_a_slow_server_holds_up_nothing(tracked: Build, undisturbed: Reference, server: Server) -> None:
    server.delay = 0.15
    built = tracked()
    started = start(built, server)
    assert started.wait() == [0]
    assert ranks.result(built) == undisturbed() and has_curve(server, built)
    assert "warning" not in started.output()


def children(started: Started) -> list[int]:
    """Return the processes that the training started."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == started.ranks[0].pid:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_f01_kill_9_and_the_same_command(
    tracked: Build, undisturbed: Reference, server: Server, tmp_path: Path
) -> None:
    built = tracked()
    started = start(built, server, halt(tmp_path / "never"))
    until(lambda: has_rows(server))
    started.send(signal.SIGKILL)
    started.wait()
    before = len(only(server).history())
    again = start(built, server)
    assert again.wait() == [0]
    assert "continuing at step" in again.output() and 2 < before < 13
    assert ranks.result(built) == undisturbed() and has_curve(server, built)
    assert only(server).starts == 2 and not only(server).overwritten


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_f04_a_requeued_run_goes_on_there(
    tracked: Build, undisturbed: Reference, server: Server, tmp_path: Path, name: str
) -> None:
    """SIGUSR1 to the training, and SIGTERM to every process of it, the client's service too, as Slurm sends it."""
    gate = tmp_path / "gate"
    started = start(tracked(), server, halt(gate))
    until(lambda: has_rows(server))
    for pid in children(started) if name == "SIGTERM" else ():
        os.kill(pid, signal.SIGTERM)
    started.send(signal.Signals[name])
    gate.touch()
    assert started.wait() == [85] and "warning" not in started.output(), started.output()
    assert only(server).preempting and only(server).exit_codes == [85]
    built = tracked(**{"hardware.timeout": 99.0})
    again = start(built, server)
    assert again.wait() == [0], again.output()
    assert ranks.result(built) == undisturbed() and has_curve(server, built)
    assert only(server).exit_codes == [85, 0] and only(server).config()["hardware"]["timeout"] == 99


@pytest.mark.slow
def test_f04_a_signal_ends_the_wait_for_a_server(
    tracked: Build, undisturbed: Reference, server: Server, tmp_path: Path
) -> None:
    built, gate = tracked(**{"tracking.timeout": 120.0}), tmp_path / "gate"
    started = start(built, server, halt(gate))
    until(lambda: has_rows(server))
    server.fault = "stall"
    gate.touch()
    status = locate_run(built) / "status.json"
    until(lambda: json.loads(status.read_text())["state"] == "finished")
    time.sleep(0.3)
    started.send(signal.SIGTERM)
    assert started.wait() == [0], "of the 120 it may wait for the server"
    assert started.output().count("warning: ") == 1
    assert ranks.result(built) == undisturbed()
