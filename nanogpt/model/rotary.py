"""Rotary position embedding (Su et al. 2021): rotates queries and keys by angles proportional to their position.

As in Llama, channel i of a head is paired with channel i + D/2. B batch, T time, H heads, D head size.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles, each (T, D) or (B, T, D)."""


def compute_rotation(positions: Tensor, head_size: int, base: float) -> Rotation:
    """Return the rotation at (T,) or (B, T) positions: pair i turns by position * base ** (-2 i / D)."""
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[..., None].float() * base**-exponents  # (…, T, D/2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rotation(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of channels by its angle: (B, H, T, D) -> (B, H, T, D)."""
    cos, sin = (part.to(x.dtype).unsqueeze(-3) for part in rotation)
    first, second = x.chunk(2, dim=3)
    return x * cos + torch.cat([-second, first], dim=3) * sin
