"""Errors with exit codes, one class per code. A command prints the message on one line and exits with the code.

The codes are part of the interface (README, "Exit codes"): 0 done, 1 internal error, 2 bad input, 3 data, 4
checkpoint, 5 environment, 6 diverged, 7 peer lost, 75 run directory locked, 85 stopped with a checkpoint saved.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from nanogpt.redaction import redact

STOPPED = 85
GPU_FAILED = "the GPU failed"  # begins the error of a broken GPU; the launcher retries on another node


class LabError(Exception):
    """An expected failure. Its message is one printable line."""

    exit_code = 1
    reported_elsewhere = False
    """True if another rank prints the error."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, 2000))


class BadInput(LabError):
    """An invalid key, value or combination. Nothing was started and nothing written."""

    exit_code = 2


class BadData(LabError):
    """Data that is missing, not prepared, corrupt or does not fit the model."""

    exit_code = 3


class BadCheckpoint(LabError):
    """A checkpoint or run directory that is corrupt, not ours or of another run."""

    exit_code = 4


class BadEnvironment(LabError):
    """A GPU, library, network or disk space that this machine lacks."""

    exit_code = 5


class Diverged(LabError):
    """The loss or a gradient is not a finite number any more."""

    exit_code = 6


class PeerLost(LabError):
    """Another rank of this run has died, hangs or did not arrive."""

    exit_code = 7


class Locked(LabError):
    """Another process is training in this run directory."""

    exit_code = 75


def error_from_exit_code(exit_code: int, message: str) -> LabError:
    """Return the error of another rank, which prints it, so that this rank ends with the same exit code."""
    kinds = {kind.exit_code: kind for kind in LabError.__subclasses__()}
    error = kinds.get(exit_code, LabError)(message)
    error.reported_elsewhere = True
    return error


def find_nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that is nearest to `name`, or None.

    Keys with the same last part, or nanoGPT's name, come first: `lr` and `learning_rate` find `optimizer.lr`.
    """
    options = list(allowed)
    by_case = {option.lower(): option for option in options}
    if name.lower() in by_case:
        return by_case[name.lower()]
    last = name.rpartition(".")[2]
    same = [option for option in options if option.rpartition(".")[2] in (last, ALIASES.get(last))]
    if same:
        return difflib.get_close_matches(name, same, n=1, cutoff=0.0)[0]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    return close[0] if close else None


ALIASES = {  # names of keys in nanoGPT and other trainers
    "learning_rate": "lr",
    "max_iters": "steps",
    "max_steps": "steps",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "lr_decay_iters": "decay_steps",
    "batch_size": "batch_tokens",
    "gradient_accumulation_steps": "batch_tokens",
    "epochs": "tokens",
    "num_epochs": "tokens",
    "min_lr": "min_lr_ratio",
    "output_dir": "runs_dir",
    "wandb_log": "trackers",
    "wandb_project": "project",
    "wandb_run_name": "name",
    "eval_interval": "every",
    "eval_iters": "tokens",
    "log_interval": "log_every",
    "dtype": "precision",
    "out_dir": "runs_dir",
    "start": "prompt",
    "beta1": "betas",
    "beta2": "betas",
    "gpu": "cuda",
}


def one_line(text: object, limit: int = 80) -> str:
    """Return `text` on one line, secrets hidden, control characters visible, cut to `limit` unless it is a path."""
    plain = redact(str(text))
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in plain)
    return line if len(line) <= limit or isinstance(text, Path) else line[: limit - 1] + "…"


def hint(name: str, allowed: Iterable[str]) -> str:
    """Return the end of an error message, `; did you mean 'x'?`, or an empty string if no name is near."""
    near = find_nearest(name, allowed)
    unit = UNITS.get(name.rpartition(".")[2], "") if near else ""
    return f"; did you mean '{near}'{unit}?" if near else ""


UNITS = {  # units of keys that replace others with another unit
    "batch_size": ", in tokens: batch_size x block_size x gradient accumulation",
    "gradient_accumulation_steps": ", in tokens: batch_size x block_size x gradient accumulation",
    "epochs": ", in tokens",
    "num_epochs": ", in tokens",
    "min_lr": ", a share of optimizer.lr",
}
