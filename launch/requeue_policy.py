"""Decide what becomes of a point when an attempt ends: finished, requeued or failed, and why.

The batch script decides once after all ranks ended, so ranks know nothing of the queue.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nanogpt.errors import GPU_FAILED, STOPPED, Diverged, Locked, PeerLost

Outcome = Literal["finished", "requeued", "failed", "diverged", "cancelled"]
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent before a time limit and at preemption; a rank that has not installed its handler yet dies of them."""
REQUEUE_CODES = (STOPPED, PeerLost.exit_code, Locked.exit_code)
KILLED_FOR_MEMORY = re.compile(
    r"^(slurmstepd|srun): error: .*(oom[-_ ]kill|out of memory)", re.IGNORECASE | re.MULTILINE
)
LAST_ERROR = re.compile(r"^(?:rank \d+: )?error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class AttemptEnd:
    """One exit code for all ranks of an attempt, negative for a signal, and the reason."""

    code: int
    why: str


@dataclass(frozen=True)
class AttemptHistory:
    """Earlier attempts at a point."""

    step: int
    """Step of the newest checkpoint."""
    from_steps: list[int]
    """First step of every attempt, this one last."""

    @property
    def restarts(self) -> int:
        return len(self.from_steps) - 1

    @property
    def restarts_without_progress(self) -> int:
        """Return how many of the last attempts started at the step that is still the newest."""
        count = 0
        for step in reversed(self.from_steps):
            if step != self.step:
                break
            count += 1
        return count


@dataclass(frozen=True)
class RestartLimits:
    """Limits on requeueing a point."""

    max_requeues: int
    max_restarts_without_progress: int


def classify_end(code: int, exits: Mapping[int, Mapping[str, Any]], log: str) -> AttemptEnd:
    """Return how an attempt ended, from srun's exit code, the ranks' exit files and the end of the log."""
    ranks = {rank: (int(facts["code"]), str(facts["why"])) for rank, facts in exits.items()}
    for rank in sorted(ranks):  # the first error that another rank did not cause
        if ranks[rank][0] not in (0, *REQUEUE_CODES):
            return AttemptEnd(*ranks[rank])
    if 0 in ranks and ranks[0][0] in (0, STOPPED):  # rank 0 saved everything
        return AttemptEnd(*ranks[0])
    if KILLED_FOR_MEMORY.search(log) and code:
        return AttemptEnd(
            -signal.SIGKILL, "out of memory: killed by the system; ask for more memory or a smaller micro-batch"
        )
    if ranks:
        return AttemptEnd(*ranks[min(ranks)])
    errors = LAST_ERROR.findall(log)
    if code - 128 in STOP_SIGNALS:
        return AttemptEnd(128 - code, "asked to stop")
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        return AttemptEnd(128 - code, f"killed by {name}")
    return AttemptEnd(code or 1, errors[-1] if errors else f"ended with code {code} and no message")


def decide(end: AttemptEnd, history: AttemptHistory, limits: RestartLimits) -> tuple[Outcome, str]:
    """Return what becomes of the point, and the reason.

    Stopped and killed attempts are requeued, and those that lost a rank. Other errors would repeat, except an
    unexpected exception or a failed GPU after a new checkpoint, which may be the hardware's fault.
    """
    if end.code == 0:
        return "finished", ""
    if end.code == Diverged.exit_code:
        return "diverged", end.why
    may_be_hardware = end.code == 1 or end.why.startswith(GPU_FAILED)
    retryable = (
        end.code < 0 or end.code in REQUEUE_CODES or (may_be_hardware and history.restarts_without_progress == 0)
    )
    if not retryable or "out of memory" in end.why:
        return "failed", end.why
    refusal = reason_not_to_restart(history, limits)
    return ("failed", f"{end.why}; {refusal}") if refusal else ("requeued", end.why)


def reason_not_to_restart(history: AttemptHistory, limits: RestartLimits) -> str | None:
    """Return why no further attempt is made, or None."""
    if history.restarts_without_progress > limits.max_restarts_without_progress:
        return f"no new checkpoint in {history.restarts_without_progress} attempts, all from step {history.step}"
    if history.restarts >= limits.max_requeues:
        return f"requeued {history.restarts} times already (hydra.launcher.max_requeues)"
    return None
