"""Run one measurement in a fresh process."""

from pathlib import Path

from pydantic import Field

from nanogpt.child_process import ChildFailed, end_child, start_child, wait_for_child
from nanogpt.config import BenchConfig
from nanogpt.config.bench import What
from nanogpt.errors import BadEnvironment, BadInput, LabError, error_from_exit_code, one_line
from nanogpt.schema import ConfigModel

OURS = "nanogpt-lab"


class Workload(ConfigModel):
    """Task of one process."""

    program: str
    """OURS, or an entry of `against`."""
    what: What
    batch: int
    """Sequences per micro-batch, or texts generated at once."""
    models: int = 1
    """Models that are trained as one network."""
    least_s: float = 0.0
    """Time that all steps that are timed take at least; then there may be more than `bench.steps`."""
    config: BenchConfig
    """Its model has a vocabulary size."""


class Timing(ConfigModel):
    """Result of a Workload."""

    seconds: tuple[float, ...]
    """Time of each training step, or of the whole generation."""
    first: float
    """Seconds of the first step, before the warm-up, or of the first token."""
    memory: int
    """Peak bytes allocated on the GPU; without a GPU, peak resident bytes of the process."""
    parameters: int
    """Number of parameters; tied weights count once."""
    phases: dict[str, float] = Field(default_factory=dict[str, float])
    """Seconds of each phase of a training step, with the device synchronized before and after."""


def measure(workload: Workload, compiled: Path | None = None) -> Timing:
    """Run a workload in a fresh process. `compiled` is where torch.compile keeps its cache; None: where it always does.

    Raises the LabError that the process raised, else BadInput, or BadEnvironment if a signal ended it.
    """
    return measure_at_once(workload, 1, compiled)[0]


def measure_at_once(workload: Workload, copies: int, compiled: Path | None = None) -> list[Timing]:
    """Run a workload in several fresh processes at once. Raises as `measure` does."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(compiled)} if compiled else {}
    message = workload.model_dump_json()
    waiting = [start_child("nanogpt.benchmark.worker", message=message, **cache) for _ in range(copies)]
    try:
        return [Timing.model_validate_json(wait_for_child(waiting.pop())) for _ in range(copies)]
    except ChildFailed as failure:
        raise to_lab_error(workload, failure) from None
    finally:
        for child in waiting:
            end_child(child)


def to_lab_error(workload: Workload, failure: ChildFailed) -> LabError:
    """Return the error of a process that failed."""
    if failure.is_lab_error:
        error = error_from_exit_code(failure.code, str(failure))
        error.reported_elsewhere = False  # only this process has read its message
        return error
    name = "bench.py" if workload.program == OURS else f"against={one_line(workload.program)}"
    if failure.code < 0:
        why = f"was ended by signal {-failure.code}; signal 9 usually means that memory ran out"
        return BadEnvironment(f"{name}: its {workload.what} {why}")
    return BadInput(f"{name}: its {workload.what} ended with {one_line(failure, 300)}")


def with_vocabulary(config: BenchConfig, vocab_size: int | None) -> BenchConfig:
    """Return the config with another vocabulary size."""
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab_size})})
