"""The state of a point, from its recorded events and the queue."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.slurm import QueueEntry
from launch.status import decide_state, read_run

START: dict[str, Any] = {"event": "start", "job": "5_0", "step": 0}


def end(state: str, why: str = "") -> dict[str, Any]:
    return {"event": "end", "state": state, "why": why, "step": 3}


GONE = QueueEntry("GONE", "")
CASES = [  # events, queue, handed over -> state, words of why
    ([], QueueEntry("PENDING", "Resources"), True, "queued", "Resources"),
    ([], QueueEntry("RUNNING", "None"), True, "queued", ""),  # its batch script hasn't begun
    ([START], QueueEntry("RUNNING", "None"), True, "running", ""),
    ([START], QueueEntry("COMPLETING", "None"), True, "running", "completing"),
    ([START, end("requeued", "preempted")], QueueEntry("PENDING", "BeginTime"), True, "queued", "requeued: preempted"),
    ([START, end("requeued", "preempted"), START], QueueEntry("RUNNING", "None"), True, "running", ""),
    ([START], QueueEntry("PENDING", "BeginTime"), True, "queued", "BeginTime"),  # put back by Slurm itself
    ([START, end("failed", "no data")], QueueEntry("FAILED", "NonZeroExitCode"), True, "failed", "no data"),
    ([START, end("diverged", "loss nan")], GONE, True, "diverged", "loss nan"),
    ([START, end("cancelled", "nanogpt cancel")], QueueEntry("RUNNING", ""), True, "cancelled", "nanogpt cancel"),
    ([START], QueueEntry("CANCELLED", ""), True, "cancelled", "cancelled in Slurm"),
    ([START], QueueEntry("OUT_OF_MEMORY", ""), True, "failed", "out of memory"),
    ([START], QueueEntry("TIMEOUT", ""), True, "lost", "time limit"),
    ([START], QueueEntry("NODE_FAIL", ""), True, "lost", "node failed"),
    ([START], GONE, True, "lost", "gone"),
    ([START], None, True, "unknown", "doesn't answer"),
    ([START, end("failed", "no data")], None, True, "failed", "no data"),
    ([], GONE, False, "lost", "cut short"),
    ([], None, False, "unknown", "doesn't answer"),
]


@pytest.mark.parametrize(("events", "job", "submitted", "state", "why"), CASES)
def test_state_of(events: list[dict[str, Any]], job: QueueEntry | None, submitted: bool, state: str, why: str) -> None:
    found, said = decide_state(events, job, submitted)
    assert found == state and why in said


def test_what_a_run_wrote_may_be_nonsense(tmp_path: Path) -> None:
    """One damaged run must not hide the other points of the study."""
    for nonsense in ("x", [1], -5, 10**400, True):
        (tmp_path / "status.json").write_text(json.dumps({"step": nonsense, "steps": nonsense, "updated": nonsense}))
        rows = [{"step": nonsense, "val_loss": 1.0}, {"step": 7, "val_loss": nonsense if nonsense != -5 else "x"}]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[" * 2000)
        point = read_run(tmp_path)
        assert (point.step, point.steps, point.val) == (0, None, None)
