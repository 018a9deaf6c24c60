"""What a training step moves through the device's memory at least, in bytes, by the model's shape alone.

Assumed is that every operator is fused as well as it can be and that caches keep nothing from one to the next. A step
of a real program moves more: gradients of activations, sums over rows, casts. It may move less where a model is so
small that a cache holds it, or where torch.compile computes again what is counted here as kept.
"""

from dataclasses import dataclass

from nanogpt.config import ModelConfig, Precision, Rule
from nanogpt.estimates.flops import multiplied_parameters, parameter_counts
from nanogpt.estimates.memory import activation_bytes, activation_size, copy_bytes, state_bytes
from nanogpt.optim.declaration import FP32


@dataclass(frozen=True)
class Traffic:
    """Bytes read and written in one step, by kind."""

    weights: int
    """Read by the forward and the backward pass of each micro-batch, in the precision of its products."""
    gradients: int
    """Of parameters, in fp32: written by the first micro-batch, read and written by each that adds to them."""
    optimizer: int
    """Gradients read, once more by clipping; weights and moments read and written; all in fp32."""
    activations: int
    """What autograd keeps of each micro-batch (nanogpt/estimates/memory.py), written once and read once."""
    logits: int
    """Written by the head's product and read by the loss, their gradient written and read, in the same precision."""

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
    """Of a step of so many micro-batches of so many sequences each, on one device. What is looked up, token and
    position embeddings, is left out: a few rows of a matrix. `gpu` as in `estimate_training_memory`.
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
