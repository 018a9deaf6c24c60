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


class Workload(ConfigModel):
    """What one process is to do."""

    program: str
    """OURS, or a word of `against`."""
    what: What
    batch: int
    """Sequences of a micro-batch, or texts drawn at once."""
    config: BenchConfig
    """The model has its vocabulary size."""


class Timing(ConfigModel):
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


def measure(workload: Workload, compiled: Path | None = None) -> Timing:
    """Run a workload in a fresh process. `compiled`: where torch.compile keeps its cache, if not in the usual place.

    Raises the error that the process ended with.
    """
    root = str(Path(nanogpt.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "nanogpt.benchmark.worker"]
    words = {"PYTHONPATH": path} | ({"TORCHINDUCTOR_CACHE_DIR": str(compiled)} if compiled else {})
    text = workload.model_dump_json()
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=os.environ | words)
    if done.returncode == 0:
        return Timing.model_validate_json(done.stdout.splitlines()[-1])
    raise to_error(workload, done.returncode, done.stderr.strip().splitlines())


def to_error(workload: Workload, code: int, lines: list[str]) -> LabError:
    """The error for a process that ended with `code` and these last words."""
    last = lines[-1] if lines else "no message"
    if last.startswith("error: "):
        error = error_from_exit_code(code, last.removeprefix("error: "))
        error.reported_elsewhere = False  # its words came to us alone
        return error
    name = "bench.py" if workload.program == OURS else f"against={one_line(workload.program)}"
    if code < 0:
        return BadEnvironment(
            f"{name}: its {workload.what} was ended by signal {-code}; 9 is a lack of memory as a rule"
        )
    return BadInput(f"{name}: its {workload.what} ended with {one_line(last, 300)}")


def with_vocabulary(config: BenchConfig, vocab_size: int | None) -> BenchConfig:
    """The same with another vocabulary."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
