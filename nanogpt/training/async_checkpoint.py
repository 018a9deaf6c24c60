"""Asynchronous checkpoints: the state is copied at a step boundary and written by a thread."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from nanogpt.checkpoint import Tensors
from nanogpt.errors import BadEnvironment, Diverged
from nanogpt.run_directory import RunDirectory
from nanogpt.training.state import TrainState

StateTensors = dict[str, Tensors]
MOST_SHARED = 256 * 2**20  # bytes of pinned memory that tensors share; larger ones have blocks of their own size
ALIGNMENT = 64  # bytes


class AsyncCheckpointer:
    """Writes checkpoints on rank 0, one at a time, and keeps the errors of failed saves."""

    def __init__(self, run: RunDirectory, max_failed: int, note: Callable[[str], None]) -> None:
        self.run, self.max_failed, self.note = run, max_failed, note
        torch.get_num_threads()  # fixes the number for this thread before the writer sets its own
        self.thread = ThreadPoolExecutor(1, "checkpoint writer", torch.set_num_threads, (1,))
        """With one OpenMP thread: with more threads than cores, the threads of the steps would sleep instead of spin
        between matrix products, and a step of a small model would take twice as long."""
        self.buffers: Future[StateTensors] | None = None
        self.save_in_progress: Future[object] | None = None
        self.failures = 0
        """Failed saves since the last success."""
        self.fatal_error: Exception | None = None

    def reserve_buffers(self, state: TrainState) -> None:
        """Allocate the memory of the copy in the thread, once the optimizer has state."""
        if self.buffers is None and state.optimizer.state:
            self.buffers = self.thread.submit(allocate_copy, state.tensors(), state.compute.device.type == "cuda")

    def save(self, state: TrainState) -> None:
        """Copy the state and begin to write it. The previous save must be done (`is_busy`)."""
        self.collect_result()
        tensors = state.tensors()
        buffers = self.buffers.result() if self.buffers else {}
        fits = {name: part.keys() for name, part in buffers.items()} == {n: part.keys() for n, part in tensors.items()}
        copy = (
            buffers if fits else allocate_copy(tensors, pinned=False)
        )  # before the first step there is no optimizer state
        for part, key, tensor in state.gather_tensors():
            copy[part][key].copy_(tensor, non_blocking=True)
        if state.compute.device.type == "cuda":
            torch.cuda.synchronize()
        facts = json.dumps(state.to_dict() | {"metrics": self.run.metrics.record()}, indent=1, allow_nan=False) + "\n"
        self.save_in_progress = self.thread.submit(self.write, state.step, copy, facts)

    def write(self, step: int, copy: StateTensors, facts: str) -> None:
        """Write the rows, then the checkpoint that counts them. Runs in the thread."""
        for part in copy.values():
            for name, tensor in part.items():
                if not torch.isfinite(tensor).all():
                    raise Diverged(
                        f"step {step}: {name} is not finite; nothing was saved, the last checkpoint is intact"
                    )
        self.run.metrics.sync()
        self.run.checkpoints.save(step, copy, facts)

    def has_failed(self) -> bool:
        """Return whether the run must end: a save failed for good, or too many failed in a row."""
        self.collect_result()
        return self.fatal_error is not None

    def is_busy(self) -> bool:
        """Return whether a save is in progress, after taking note of the result of one that is done."""
        if self.save_in_progress is not None and not self.save_in_progress.done():
            return True
        self.collect_result()
        return False

    def collect_result(self) -> None:
        """Take note of a finished save. A full disk may have space later; any other error ends the run."""
        if self.save_in_progress is None or not self.save_in_progress.done():
            return
        error, self.save_in_progress = self.save_in_progress.exception(), None
        if error is None:
            self.failures = 0
        elif isinstance(error, BadEnvironment | OSError):
            self.failures += 1
            self.note(f"warning: {error} ({self.failures} of {self.max_failed} failures in a row; training goes on)")
            if self.failures >= self.max_failed:
                self.fatal_error = BadEnvironment(f"{self.failures} checkpoints in a row couldn't be written: {error}")
        else:
            assert isinstance(error, Exception)
            self.fatal_error = error

    def raise_error(self) -> None:
        """Raise the error of the last save, if it failed."""
        self.collect_result()
        if self.fatal_error is not None:
            raise self.fatal_error
        if self.failures:
            raise BadEnvironment("the last checkpoint couldn't be written; the one before it is intact")

    def close(self) -> None:
        """Wait for a save in progress and end the thread."""
        self.thread.shutdown(wait=True)


def allocate_copy(tensors: StateTensors, pinned: bool) -> StateTensors:
    """Return CPU tensors of the same shapes, zeroed so that their pages are mapped before the first copy.

    PyTorch rounds each piece of pinned memory up to a power of two. So pinned tensors share blocks of such sizes.
    """
    if not pinned:
        return {
            name: {key: torch.empty(t.shape, dtype=t.dtype, device="cpu").zero_() for key, t in part.items()}
            for name, part in tensors.items()
        }
    every = [tensor for part in tensors.values() for tensor in part.values()]
    sizes, places = plan_blocks([tensor.nbytes for tensor in every])
    blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=True).zero_() for size in sizes]
    views = iter(
        blocks[block][offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, (block, offset) in zip(every, places, strict=True)
    )
    return {name: {key: next(views) for key in part} for name, part in tensors.items()}


def plan_blocks(sizes: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the sizes of blocks, powers of two, and for each tensor its block and offset there. All in bytes.

    The largest tensors come first, each into the first block that has room.
    """
    usual = min(MOST_SHARED, next_power_of_two(sum(sizes)) // 8)
    used: list[int] = []
    places = [(0, 0)] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        room = -(-sizes[i] // ALIGNMENT) * ALIGNMENT
        found = (n for n, bytes_ in enumerate(used) if bytes_ + room <= max(usual, next_power_of_two(bytes_)))
        block = next(found, len(used))
        if block == len(used):
            used.append(0)
        places[i] = block, used[block]
        used[block] += room
    return [next_power_of_two(bytes_) for bytes_ in used], places


def next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
