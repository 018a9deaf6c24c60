"""What all blocks of one forward pass share besides the residual stream.

B batch, T time, S time including the cache, C channels.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from nanogpt.model.branches import Branches
from nanogpt.model.kv_cache import KVCache
from nanogpt.model.rotary import Rotation


class ForwardContext(NamedTuple):
    """One forward pass. Without anything: B sequences of T positions from the first, no dropout."""

    rotation: Rotation | None = None
    """Of the T positions, where they are rotary."""
    cache: KVCache | None = None
    """The positions before these."""
    branches: Branches | None = None
    """What sees what, where that isn't all up to itself."""
    keys: Tensor | None = None
    """(B,) int64, which switch dropout on."""

    @property
    def mask(self) -> Tensor | None:
        """(B or 1, 1, T, S), what each position sees; None where it is all up to itself."""
        if self.branches is not None:
            return self.branches.mask
        return None if self.cache is None else self.cache.mask

    def previous_inputs(self, x: Tensor, count: int, conv_index: int) -> list[Tensor]:
        """(B, T, C) -> `count` times (B, T, C): what stands 1, 2, … positions before each, zero before the first.

        `conv_index` is that of the convolution that asks, for the cache.
        """
        if self.branches is not None:
            return [self.branches.shift_right(x, k) for k in range(1, count + 1)]
        T = x.shape[1]
        longer = F.pad(x, (0, 0, count, 0)) if self.cache is None else self.cache.prepend_previous(x, count, conv_index)
        return [longer[:, count - k : count - k + T] for k in range(1, count + 1)]
