"""The queue of this machine, with real processes: points side by side, a failing one, cancelling, interruptions."""

import os
import signal
import time
from pathlib import Path

import pytest

from launch.status import RunStatus
from tests.launch.jobs import Lab, describe, result, starts
from tests.ranks import HANG


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def reference(lab: Lab) -> dict[str, str]:
    """Return the result of the undisturbed run, trained without a launcher."""
    code, output = lab.do("train.py", "-m", *lab.words(), "name=reference")
    assert code == 0, output
    (run,) = lab.study("reference").glob("base-*")
    return result(RunStatus(run))


def ranks_of(point: RunStatus) -> list[int]:
    """Process ids of the ranks under submitit's controller."""
    children = Path(f"/proc/{point.job}/task/{point.job}/children").read_text().split()
    return [int(pid) for pid in children]


def test_points_run_side_by_side_and_fail_alone(lab: Lab) -> None:
    short = ("training.steps=40", "hydra.launcher.array_parallelism=2", "model.vocab_size=null,20", "name=sides")
    code, output = lab.do(*lab.sweep("submitit_local", *short))
    points = lab.points("sides")
    assert {name: point.state for name, point in points.items()} == {
        "vocab_sizenull": "finished",
        "vocab_size20": "failed",
    }, describe(points)
    assert code == 3 and "model.vocab_size=20: the data needs at least" in output
    log = points["vocab_sizenull"].log
    assert log is not None and "=== " not in log.read_text() and "step 40/40" in log.read_text()


@pytest.mark.slow
def test_what_was_trained_here_before_is_no_job(lab: Lab) -> None:
    """A sweep that began without a launcher is finished, and then told to be finished, with one."""
    words = ("training.steps=20", "name=mixed")
    code, output = lab.do("train.py", "-m", *lab.only(*words, "training.seed=1,2"))
    assert code == 0, output
    for seeds in ("1,2,3", "1,2"):
        code, output = lab.do(*lab.sweep("submitit_local", *words, f"training.seed={seeds}"))
        assert code == 0 and "2 finished" in output and "records of what was submitted are gone" not in output, output
    assert set(lab.points("mixed")) == {"seed3"}


@pytest.mark.slow
def test_an_interrupted_point_goes_on_by_itself(lab: Lab, reference: dict[str, str]) -> None:
    """Told to save, as before a time limit; killed; and with its queue dead, by the same command."""
    words = lab.sweep("submitit_local", "name=disturbed", "hydra.launcher.wait=false")
    assert lab.do(*words)[0] == 0
    point = lab.wait_for_step("disturbed", "base", 40)
    os.kill(ranks_of(point)[0], signal.SIGUSR2)
    point = lab.wait("disturbed", lambda points: points["base"].restarts == 1)["base"]
    lab.wait("disturbed", lambda _: starts(point) == 2)
    os.kill(ranks_of(point)[0], signal.SIGKILL)
    point = lab.wait_for("disturbed", "finished", "failed", "lost")["base"]
    assert point.state == "finished" and point.restarts == 2, describe({"disturbed": point})
    assert result(point) == reference


@pytest.mark.slow
def test_cancelled_saves_and_goes_on_with_the_same_command(lab: Lab, reference: dict[str, str]) -> None:
    words = lab.sweep("submitit_local", "name=cancelled", "hydra.launcher.wait=false")
    assert lab.do(*words)[0] == 0
    point = lab.wait_for_step("cancelled", "base", 40)
    code, output = lab.do("launch", "cancel", "cancelled")
    assert code == 0 and "1 cancelled" in output
    limit = time.monotonic() + HANG
    while Path(f"/proc/{point.job}").exists():
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert lab.points("cancelled")["base"].state == "cancelled"
    words.remove("hydra.launcher.wait=false")
    code, output = lab.do(*words)
    assert code == 0, output
    point = lab.points("cancelled")["base"]
    assert starts(point) == 2 and result(point) == reference


@pytest.mark.slow
def test_two_ranks_and_a_queue_that_is_killed(lab: Lab) -> None:
    """The ranks rendezvous without a port; a point continues after its queue died, and the same command watches it."""
    words = lab.sweep("submitit_local", "name=ranks", "hardware.devices=2", "hydra.launcher.wait=false")
    assert lab.do(*words)[0] == 0
    point = lab.wait_for_step("ranks", "base", 40)
    assert len(ranks_of(point)) == 2
    queue = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"launch.local" in path.read_bytes() and b"/ranks/" in path.read_bytes()
    )
    os.kill(queue, signal.SIGKILL)
    assert lab.points("ranks")["base"].state == "running"
    words.remove("hydra.launcher.wait=false")
    code, output = lab.do(*words)
    assert code == 0 and "0 to submit (1 running)" in output, output
    assert starts(lab.points("ranks")["base"]) == 1
