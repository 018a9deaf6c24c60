"""Short causal depthwise convolutions (Primer, So et al. 2021).

B batch, T time, C channels, K taps.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from nanogpt.config import ConvPlace, ModelConfig
from nanogpt.model.context import ForwardContext

PLACES: tuple[ConvPlace, ...] = get_args(ConvPlace)


class ShortConv(nn.Module):
    """x + sum over k of weight[k - 1] * (x shifted by k positions). The initial weights, zero, make it the identity."""

    def __init__(self, taps: int, channels: int, conv_index: int) -> None:
        super().__init__()
        self.conv_index = conv_index
        self.weight = nn.Parameter(torch.empty(taps, channels))

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Return the convolved inputs: (B, T, C) -> (B, T, C)."""
        shifted = context.previous_inputs(x, len(self.weight), self.conv_index)
        for weight, earlier in zip(self.weight.to(x.dtype), shifted, strict=True):
            x = x + weight * earlier
        return x


class NoConv(nn.Module):
    """Identity, called like ShortConv."""

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        return x


def build_conv(config: ModelConfig, place: ConvPlace, channels: int, layer: int) -> nn.Module:
    """Build the convolution of a layer's attention, MLP or qkv input, or NoConv if the config has none there."""
    if place not in config.conv:
        return NoConv()
    return ShortConv(config.conv_history, channels, layer * len(PLACES) + PLACES.index(place))
