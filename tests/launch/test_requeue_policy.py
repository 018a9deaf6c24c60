"""Decisions at the end of an attempt, case by case."""

import signal

import pytest

from launch.requeue_policy import AttemptEnd, AttemptHistory, RestartLimits, classify_end, decide, reason_not_to_restart

LIMITS = RestartLimits(max_requeues=3, max_restarts_without_progress=2)
FRESH = AttemptHistory(step=40, from_steps=[0])  # one attempt, that got to step 40


def rank(code: int, why: str = "") -> dict[str, object]:
    return {"code": code, "why": why}


ENDS = [  # exit code of all, what the ranks noted, log -> one code, words in the reason
    (0, {0: rank(0)}, "", 0, ""),
    (0, {0: rank(85, "asked to stop")}, "", 85, "asked to stop"),
    (7, {0: rank(7, "rank 1 lost"), 1: rank(3, "no data")}, "", 3, "no data"),
    (137, {0: rank(7, "rank 1 lost")}, "", 7, "rank 1 lost"),
    (137, {}, "", -9, "killed by SIGKILL"),
    (140, {}, "", -12, "asked to stop"),  # before Python was loaded
    (1, {0: rank(85, "asked to stop")}, "out of memory, said a sample", 85, "asked to stop"),
    (137, {}, "text about out of memory", -9, "killed by SIGKILL"),
    (137, {}, "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0", -9, "out of memory"),
    (7, {}, "text\nrank 1: error: no rank got anywhere for 120 s\n", 7, "no rank got anywhere"),
    (1, {}, "", 1, "no message"),
    (1, {0: rank(1, "ValueError: odd")}, "", 1, "ValueError: odd"),
    (0, {}, "", 1, "no message"),  # srun is content, but nobody trained
]


@pytest.mark.parametrize(("code", "exits", "log", "expected", "why"), ENDS)
def test_ended(code: int, exits: dict[int, dict[str, object]], log: str, expected: int, why: str) -> None:
    end = classify_end(code, exits, log)
    assert end.code == expected and why in end.why


DECISIONS = [
    (AttemptEnd(0, ""), FRESH, "finished"),
    (AttemptEnd(85, "asked to stop"), FRESH, "requeued"),
    (AttemptEnd(7, "rank 1 lost"), FRESH, "requeued"),
    (AttemptEnd(75, "in use"), FRESH, "requeued"),
    (AttemptEnd(-signal.SIGKILL, "killed by SIGKILL"), FRESH, "requeued"),
    (AttemptEnd(-signal.SIGKILL, "out of memory: killed by the system"), FRESH, "failed"),
    (AttemptEnd(6, "loss nan"), FRESH, "diverged"),
    *[(AttemptEnd(code, "no"), FRESH, "failed") for code in (2, 3, 4, 5)],
    (AttemptEnd(1, "CudaError"), FRESH, "requeued"),  # once more: it got somewhere before
    (AttemptEnd(1, "CudaError"), AttemptHistory(40, [0, 40]), "failed"),
    (AttemptEnd(7, "rank 1 lost"), AttemptHistory(0, [0, 0]), "requeued"),
    (AttemptEnd(7, "rank 1 lost"), AttemptHistory(0, [0, 0, 0]), "failed"),  # two restarts without a checkpoint
    (AttemptEnd(7, "rank 1 lost"), AttemptHistory(20, [0, 0, 20, 20]), "failed"),  # requeued three times
    (AttemptEnd(85, "asked to stop"), AttemptHistory(60, [0, 0, 0]), "requeued"),
]


@pytest.mark.parametrize(("end", "history", "state"), DECISIONS)
def test_decide(end: AttemptEnd, history: AttemptHistory, state: str) -> None:
    assert decide(end, history, LIMITS)[0] == state


def test_a_refusal_says_why() -> None:
    assert "no new checkpoint in 3 attempts, all from step 0" in (
        reason_not_to_restart(AttemptHistory(0, [0, 0, 0]), LIMITS) or ""
    )
    assert "requeued 3 times" in (reason_not_to_restart(AttemptHistory(9, [0, 1, 2, 3]), LIMITS) or "")
