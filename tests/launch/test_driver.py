"""A search that runs its command as a job of this machine: hydra.launcher.wait=false."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from launch.driver import Driver, read_driver
from launch.study import Study
from launch.submission import lock_records
from nanogpt import schema
from nanogpt.errors import BadInput, Locked
from nanogpt.run_state import read_start_time
from tests.launch.jobs import Lab
from tests.launch.test_halving import STEPS, steps_of, sweep
from tests.ranks import HANG

SWEEPERS = ("halving", "asha")
WORDS = ("hydra/launcher=submitit_local", "hydra.launcher.wait=false", "optimizer.lr=1e-3,1e-2")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(tmp_path)


@pytest.mark.parametrize("sweeper", SWEEPERS)
def test_what_is_wrong_is_said_at_once(lab: Lab, sweeper: str) -> None:
    for word in ("new_attempt=true", "stop_at_fraction=0.5"):
        with pytest.raises(BadInput, match=f"{word}: not with hydra/sweeper={sweeper}"):
            sweep(lab, "study", f"hydra/sweeper={sweeper}", *WORDS, word)
    assert not (lab.folder / "runs").exists()


def test_one_at_a_time(lab: Lab) -> None:
    study = Study(lab.study("study"), [])
    me = Driver(
        executor="local",
        job=str(os.getpid()),
        started=read_start_time(os.getpid()),
        host=socket.gethostname(),
        log="driver.log",
    )
    with lock_records(study) as records:
        (records / "driver.json").write_text(schema.to_json(me))
    with pytest.raises(Locked, match=f"another process runs this search: job {os.getpid()}"):
        sweep(lab, "study", "hydra/sweeper=asha", *WORDS)
    code, output = lab.do("launch", "status", "study")
    assert code == 0 and f"search  running, job {os.getpid()}; log: driver.log" in output, output
    code, output = lab.do("launch", "status", "study", "format=json")
    assert code == 0 and json.loads(output)["search"]["state"] == "running", output
    (records / "driver.json").write_text(schema.to_json(me.model_copy(update={"started": 1})))
    found = read_driver(study.path)
    assert found is not None and found.state == "ended", "another process has its number now"
    found.stop()


@pytest.mark.slow
def test_halving_runs_in_the_background_and_is_cancelled(lab: Lab) -> None:
    """`nanogpt cancel` ends the search too, and the same command continues it."""
    words = ("name=half", "hydra/sweeper=halving", "hydra.sweeper.rungs=2", "optimizer.lr=1e-4,1e-2")
    command = lab.sweep("submitit_local", *words, "hydra.launcher.wait=false", **{"training.steps": STEPS})
    code, output = lab.do(*command)
    assert code == 0, output
    first = read_driver(lab.study("half"))
    assert first is not None and first.state == "running"
    lab.wait("half", lambda points: len(points) == 2)
    code, output = lab.do("launch", "cancel", "half")
    assert code == 0, output
    wait_for_end(first)
    code, output = lab.do(*command)
    assert code == 0, output
    second = read_driver(lab.study("half"))
    assert second is not None and second.job != first.job
    code, output = lab.do("launch", "wait", "half")
    assert code == 0 and "search  exit code 0; log: " in output and second.state == "ended", output
    assert steps_of(lab, "half") == {"lr0.0001": 6, "lr0.01": 18}, Path(second.log).read_text()
    assert "best    lr0.01-" in Path(second.log).read_text()


def wait_for_end(driver: Driver) -> None:
    limit = time.monotonic() + HANG
    while driver.state != "ended":
        assert time.monotonic() < limit, Path(driver.log).read_text()
        time.sleep(0.2)
