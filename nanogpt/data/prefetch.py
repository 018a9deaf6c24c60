"""Micro-batches made by a thread before they are asked for, so that a GPU never waits for the disk."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
DEPTH = 3  # micro-batches


class Prefetcher(Generic[T]):
    """`make(first)`, for each `first` asked for, in advance for those that follow at a stride.

    What comes depends on `first` alone: after a jump the ones made in vain are thrown away.
    """

    def __init__(self, make: Callable[[int], T], stride: int, device: torch.device) -> None:
        self.make, self.stride, self.device = make, stride, device
        self.thread = ThreadPoolExecutor(1, "batches", self.set_device)
        self.pending: deque[tuple[int, Future[T]]] = deque()

    def set_device(self) -> None:
        """In the thread: pinned memory is to be this GPU's, not the first one's."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def take(self, first: int) -> T:
        """Raises what `make` raised for this one, not what it raised for others."""
        if self.pending and self.pending[0][0] != first:
            self.cancel_pending()
        while len(self.pending) <= DEPTH:
            following = first + len(self.pending) * self.stride
            self.pending.append((following, self.thread.submit(self.make, following)))
        return self.pending.popleft()[1].result()

    def cancel_pending(self) -> None:
        """None of those under way is wanted."""
        for _, future in self.pending:
            future.cancel()
        self.pending.clear()

    def close(self) -> None:
        """End the thread."""
        self.cancel_pending()
        self.thread.shutdown()
