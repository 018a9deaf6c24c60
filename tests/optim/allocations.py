"""Calls and memory of code that runs on meta tensors, which have shapes and types but no values."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts ATen calls and the bytes of storages that were made inside, as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        """Calls that compute something, by name."""
        self.views = 0
        self.peak = self.held = 0
        self.known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self.meet(tensor, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.meet(tensor, 1)
        view = func.is_view or "split" in str(func)
        self.views += view
        if func.namespace == "aten" and not view:
            self.calls[str(func)] += 1
        return result

    def meet(self, tensor: Any, share: int) -> None:
        """Count a storage that was not seen before, and take it off again when it is freed."""
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        known = self.known.get(id(storage))
        if known is None or known() is None:
            self.known[id(storage)] = weakref.ref(storage)
            self.held += share * storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self.free, share * storage.nbytes())

    def free(self, size: int) -> None:
        self.held -= size
