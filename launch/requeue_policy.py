"""What follows from the end of an attempt: finished, requeued or failed, and the reason.

Decided once, in the batch script after all ranks ended, so ranks needn't know about the queue.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nanogpt.errors import GPU_FAILED, STOPPED, Diverged, Locked, PeerLost

Outcome = Literal["finished", "requeued", "failed", "diverged", "cancelled"]
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent before a time limit and at preemption; they kill a rank that has not got as far as to take them."""
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
    """Of the newest checkpoint now."""
    from_steps: list[int]
    """At which step every attempt began, this one last."""

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
    """How often a point is requeued."""

    max_requeues: int
    max_restarts_without_progress: int


def classify_end(code: int, exits: Mapping[int, Mapping[str, Any]], log: str) -> AttemptEnd:
    """Return how an attempt ended, from srun's exit code, the ranks' exit files and the end of the log."""
    noted = {rank: (int(exit_["code"]), str(exit_["why"])) for rank, exit_ in exits.items()}
    for rank in sorted(noted):  # the first that had an error of its own
        if noted[rank][0] not in (0, *REQUEUE_CODES):
            return AttemptEnd(*noted[rank])
    if 0 in noted and noted[0][0] in (0, STOPPED):  # the leader has done all there was to do
        return AttemptEnd(*noted[0])
    if KILLED_FOR_MEMORY.search(log) and code:
        return AttemptEnd(
            -signal.SIGKILL, "out of memory: killed by the system; ask for more memory or a smaller micro-batch"
        )
    if noted:
        return AttemptEnd(*noted[min(noted)])
    said = LAST_ERROR.findall(log)
    if code - 128 in STOP_SIGNALS:
        return AttemptEnd(128 - code, "asked to stop")
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        return AttemptEnd(128 - code, f"killed by {name}")
    return AttemptEnd(code or 1, said[-1] if said else f"ended with code {code} and no word")


def decide(end: AttemptEnd, history: AttemptHistory, limits: RestartLimits) -> tuple[Outcome, str]:
    """Return what becomes of the point, and the reason.

    Stopped and killed attempts are requeued; so are attempts that lost a rank. Other errors would repeat, except an
    unexpected exception or a failed GPU after a new checkpoint: the hardware may be to blame.
    """
    if end.code == 0:
        return "finished", ""
    if end.code == Diverged.exit_code:
        return "diverged", end.why
    perhaps = end.code == 1 or end.why.startswith(GPU_FAILED)
    again = end.code < 0 or end.code in REQUEUE_CODES or (perhaps and history.restarts_without_progress == 0)
    if not again or "out of memory" in end.why:
        return "failed", end.why
    refusal = reason_not_to_restart(history, limits)
    return ("failed", f"{end.why}; {refusal}") if refusal else ("requeued", end.why)


def reason_not_to_restart(history: AttemptHistory, limits: RestartLimits) -> str | None:
    """Return why no further attempt is made, or None."""
    if history.restarts_without_progress > limits.max_restarts_without_progress:
        return f"no new checkpoint in {history.restarts_without_progress} attempts, all from step {history.step}"
    if history.restarts >= limits.max_requeues:
        return f"it was put back {history.restarts} times already (hydra.launcher.max_requeues)"
    return None
