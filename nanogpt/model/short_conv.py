"""Short causal depthwise convolutions: each channel also sees its own last few positions (So et al. 2021, Primer).

B batch, T time, C channels, K taps.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from nanogpt.config import ConvPlace, ModelConfig
from nanogpt.model.context import Pass

PLACES: tuple[ConvPlace, ...] = get_args(ConvPlace)


class ShortConv(nn.Module):
    """x + the sum over k of weight[k - 1] * (x of k positions before). Its weights begin at zero: it does nothing."""

    def __init__(self, taps: int, channels: int, number: int) -> None:
        super().__init__()
        self.number = number
        self.weight = nn.Parameter(torch.empty(taps, channels))

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        for weight, earlier in zip(
            self.weight.to(x.dtype), shared.before(x, len(self.weight), self.number), strict=True
        ):
            x = x + weight * earlier
        return x


class NoConv(nn.Module):
    """Nothing, where a convolution could be."""

    def forward(self, x: Tensor, shared: Pass) -> Tensor:
        return x


def convolution(config: ModelConfig, place: ConvPlace, channels: int, layer: int) -> nn.Module:
    """The convolution of a layer at a place, if the model has one there."""
    if place not in config.conv:
        return NoConv()
    return ShortConv(config.conv_history, channels, layer * len(PLACES) + PLACES.index(place))
