"""Lower bound of the bytes that a training step moves through the device's memory, computed from the model's shape.

It assumes perfect fusion, and caches that keep nothing between operators. A real step moves more: gradients of
activations, sums over rows, casts. It may move less if a cache holds the whole model, or if torch.compile recomputes
what is counted here as saved.
"""

from dataclasses import dataclass

from nanogpt.config import ModelConfig, Precision, Rule
from nanogpt.estimates.flops import multiplied_parameters, parameter_counts
from nanogpt.estimates.memory import activation_bytes, activation_size, copy_bytes, state_bytes
from nanogpt.optim.declaration import FP32


@dataclass(frozen=True)
class Traffic:
    """Bytes read and written in a step, by kind."""

    weights: int
    """Read by the forward and backward pass of each micro-batch, in the precision of products."""
    gradients: int
    """Parameters' gradients in fp32: written by the first micro-batch, read and written by each other one."""
    optimizer: int
    """Gradients read, again by clipping; weights and optimizer state read and written; all in fp32."""
    activations: int
    """Saved for the backward pass of each micro-batch (nanogpt/estimates/memory.py), written once and read once."""
    logits: int
    """Written by the head and read by the loss; their gradient likewise; in the precision of products."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def step_traffic(
    config: ModelConfig,
    precision: Precision,
    sequences: int,
    micro_batches: int,
    rule: Rule = "adamw",
    clipped: bool = True,
    gpu: bool = False,
) -> Traffic:
    """Return the traffic of a step of `micro_batches` micro-batches with `sequences` each, on one device.

    Lookups of embeddings are left out: a few rows of a matrix. `gpu` as in `estimate_training_memory`.
    """
    n_params = parameter_counts(config)["total"]
    size = activation_size(precision)
    kept = activation_bytes(config, size, sequences, gpu) - copy_bytes(config, size)
    logits = sequences * config.block_size * config.padded_vocab_size
    return Traffic(
        weights=micro_batches * 2 * size * multiplied_parameters(config),
        gradients=(2 * micro_batches - 1) * FP32 * n_params,
        optimizer=(3 + clipped) * FP32 * n_params + 2 * state_bytes(config, rule),
        activations=micro_batches * 2 * kept,
        logits=micro_batches * 4 * size * logits,
    )
