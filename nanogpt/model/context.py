"""Inputs of a forward pass that all blocks share, besides the residual stream.

B batch, T time, S time including the cache, C channels.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from nanogpt.model.branches import Branches
from nanogpt.model.kv_cache import KVCache
from nanogpt.model.rotary import Rotation


class ForwardContext(NamedTuple):
    """Shared inputs of all blocks. The default is training or scoring without a cache, and without dropout."""

    rotation: Rotation | None = None
    """Rotary angles of the T positions; None with learned positions."""
    cache: KVCache | None = None
    """Keys and values of earlier positions."""
    branches: Branches | None = None
    """Positions and mask of several continuations packed into one sequence; None: plain causal attention."""
    keys: Tensor | None = None
    """(B,) int64, a dropout key per sequence; None: no dropout."""
    recompute_weights: bool = False
    """See `GPT.recompute_attention_weights`."""
    fused_groups: bool = False
    """See `GPT.fused_groups`."""

    @property
    def mask(self) -> Tensor | None:
        """(B or 1, 1, T, S), True where a position attends to another; None: causal attention."""
        if self.branches is not None:
            return self.branches.mask
        return None if self.cache is None else self.cache.mask

    def previous_inputs(self, x: Tensor, count: int, conv_index: int) -> list[Tensor]:
        """Return `count` tensors (B, T, C): `x` shifted by 1, 2, … positions, zero before the first position.

        `conv_index` identifies the calling convolution in the cache.
        """
        if self.branches is not None:
            return [self.branches.shift_right(x, k) for k in range(1, count + 1)]
        T = x.shape[1]
        longer = F.pad(x, (0, 0, count, 0)) if self.cache is None else self.cache.prepend_previous(x, count, conv_index)
        return [longer[:, count - k : count - k + T] for k in range(1, count + 1)]
