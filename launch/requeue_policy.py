"""What the end of an attempt means: done, to be put back into the queue, or failed, and why, in words.

Decided once, in the batch script when all ranks have ended, so ranks needn't know that there is a queue.
"""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nanogpt.errors import GPU_FAILED, STOPPED, Diverged, Locked, PeerLost

State = Literal["finished", "requeued", "failed", "diverged", "cancelled"]
TO_STOP = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent before a time limit and at preemption; they kill a rank that has not got as far as to take them."""
AGAIN = (STOPPED, PeerLost.exit_code, Locked.exit_code)
MEMORY = re.compile(r"^(slurmstepd|srun): error: .*(oom[-_ ]kill|out of memory)", re.IGNORECASE | re.MULTILINE)
LAST_ERROR = re.compile(r"^(?:rank \d+: )?error: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: one exit code for all its ranks, negative for a signal, and the reason."""

    code: int
    why: str


@dataclass(frozen=True)
class History:
    """What came before."""

    step: int
    """Of the newest checkpoint now."""
    from_steps: list[int]
    """At which step every attempt began, this one last."""

    @property
    def restarts(self) -> int:
        return len(self.from_steps) - 1

    @property
    def fruitless(self) -> int:
        """How many of the last attempts, in a row, began at the step that is still the newest."""
        count = 0
        for step in reversed(self.from_steps):
            if step != self.step:
                break
            count += 1
        return count


@dataclass(frozen=True)
class Limits:
    """How often a point is put back."""

    max_requeues: int
    max_restarts_without_progress: int


def ended(code: int, exits: Mapping[int, Mapping[str, Any]], log: str) -> Ended:
    """From the exit code of all (srun's), what each rank noted when it ended, and the end of the log."""
    noted = {rank: (int(one["code"]), str(one["why"])) for rank, one in exits.items()}
    for rank in sorted(noted):  # the first that had an error of its own
        if noted[rank][0] not in (0, *AGAIN):
            return Ended(*noted[rank])
    if 0 in noted and noted[0][0] in (0, STOPPED):  # the leader has done all there was to do
        return Ended(*noted[0])
    if MEMORY.search(log) and code:
        return Ended(
            -signal.SIGKILL, "out of memory: killed by the system; ask for more memory or a smaller micro-batch"
        )
    if noted:
        return Ended(*noted[min(noted)])
    said = LAST_ERROR.findall(log)
    if code - 128 in TO_STOP:
        return Ended(128 - code, "asked to stop")
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        return Ended(128 - code, f"killed by {name}")
    return Ended(code or 1, said[-1] if said else f"ended with code {code} and no word")


def decide(end: Ended, history: History, limits: Limits) -> tuple[State, str]:
    """What becomes of the point, and why.

    Stopped and killed attempts are put back; so is one that lost a rank. Errors that would only come again are not, but
    for an unforeseen exception or a GPU that failed, after a new checkpoint: the hardware may be to blame.
    """
    if end.code == 0:
        return "finished", ""
    if end.code == Diverged.exit_code:
        return "diverged", end.why
    perhaps = end.code == 1 or end.why.startswith(GPU_FAILED)
    again = end.code < 0 or end.code in AGAIN or (perhaps and history.fruitless == 0)
    if not again or "out of memory" in end.why:
        return "failed", end.why
    refusal = refuse(history, limits)
    return ("failed", f"{end.why}; {refusal}") if refusal else ("requeued", end.why)


def refuse(history: History, limits: Limits) -> str | None:
    """Why one more attempt isn't made, or None."""
    if history.fruitless > limits.max_restarts_without_progress:
        return f"no new checkpoint in {history.fruitless} attempts, all from step {history.step}"
    if history.restarts >= limits.max_requeues:
        return f"it was put back {history.restarts} times already (hydra.launcher.max_requeues)"
    return None
