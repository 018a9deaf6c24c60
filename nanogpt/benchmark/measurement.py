"""One measurement in a process of its own: what is asked for, what comes back, and how it is asked."""

import os
import subprocess
import sys
from pathlib import Path

from pydantic import Field

import nanogpt
from nanogpt.config import BenchConfig
from nanogpt.config.bench import What
from nanogpt.errors import BadEnvironment, BadInput, LabError, error_from_exit_code, one_line
from nanogpt.schema import ConfigModel

OURS = "nanogpt-lab"


class Work(ConfigModel):
    """What one process is to do."""

    program: str
    """OURS, or a word of `against`."""
    what: What
    batch: int
    """Sequences of a micro-batch, or texts drawn at once."""
    config: BenchConfig
    """The model has its vocabulary size."""


class Measurement(ConfigModel):
    """What it found."""

    seconds: tuple[float, ...]
    """Of each training step, or of the one generation."""
    first: float
    """Seconds of the first step, before the warm-up, or to the first token where the program can tell; else 0."""
    memory: int
    """Peak bytes of the GPU's allocations, or where there is none of the whole process."""
    parameters: int
    """Tied weights counted once."""
    phases: dict[str, float] = Field(default_factory=dict[str, float])
    """Seconds of each phase of a training step, the device waited for at its ends."""


def measured(work: Work, compiled: Path | None = None) -> Measurement:
    """The same work on the same settings, whoever does it. What torch.compile makes is kept in `compiled`, or where it
    always is. Raises the error the process ended with.
    """
    root = str(Path(nanogpt.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "nanogpt.benchmark.worker"]
    words = {"PYTHONPATH": path} | ({"TORCHINDUCTOR_CACHE_DIR": str(compiled)} if compiled else {})
    text = work.model_dump_json()
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=os.environ | words)
    if done.returncode == 0:
        return Measurement.model_validate_json(done.stdout.splitlines()[-1])
    raise explained(work, done.returncode, done.stderr.strip().splitlines())


def explained(work: Work, code: int, lines: list[str]) -> LabError:
    """The error for a process that ended with `code` and these last words."""
    last = lines[-1] if lines else "no message"
    if last.startswith("error: "):
        error = error_from_exit_code(code, last.removeprefix("error: "))
        error.reported_elsewhere = False  # its words came to us alone
        return error
    name = "bench.py" if work.program == OURS else f"against={one_line(work.program)}"
    if code < 0:
        return BadEnvironment(f"{name}: its {work.what} was ended by signal {-code}; 9 is a lack of memory as a rule")
    return BadInput(f"{name}: its {work.what} ended with {one_line(last, 300)}")


def with_vocabulary(config: BenchConfig, vocab_size: int | None) -> BenchConfig:
    """The same with another vocabulary."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
