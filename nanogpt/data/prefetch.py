"""Prefetch micro-batches in a thread, so that a GPU doesn't wait for the disk."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
DEPTH = 3  # micro-batches


class Prefetcher(Generic[T]):
    """Computes `make(first)` ahead of time for the values of `first` that follow at a stride.

    Results depend on `first` alone; after a jump the unused ones are discarded.
    """

    def __init__(self, make: Callable[[int], T], stride: int, device: torch.device) -> None:
        self.make, self.stride, self.device = make, stride, device
        self.thread = ThreadPoolExecutor(1, "batches", self.set_device)
        self.pending: deque[tuple[int, Future[T]]] = deque()

    def set_device(self) -> None:
        """Select this rank's GPU in the thread, for which it pins memory; the default is the first GPU."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def take(self, first: int) -> T:
        """Return `make(first)`. Raises what `make` raised for this value only."""
        if self.pending and self.pending[0][0] != first:
            self.cancel_pending()
        while len(self.pending) <= DEPTH:
            following = first + len(self.pending) * self.stride
            self.pending.append((following, self.thread.submit(self.make, following)))
        return self.pending.popleft()[1].result()

    def cancel_pending(self) -> None:
        """Discard all prefetched results."""
        for _, future in self.pending:
            future.cancel()
        self.pending.clear()

    def close(self) -> None:
        """End the thread."""
        self.cancel_pending()
        self.thread.shutdown()
