"""A model with the methods that nanoGPT's users know (https://github.com/karpathy/nanoGPT, model.py)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.optim import Optimizer

from nanogpt.config import ModelConfig, OptimizerConfig
from nanogpt.errors import BadInput
from nanogpt.estimates.flops import flops_per_token, parameter_counts
from nanogpt.generation.decode import SamplingParams, generate
from nanogpt.interop.load_weights import load_weights
from nanogpt.interop.sources import fill_from_weights, find_source
from nanogpt.model.gpt import GPT
from nanogpt.model.loss import IGNORED
from nanogpt.optim.build import build_optimizer
from nanogpt.schema import from_dict

A100_BF16_FLOPS = 312e12  # per second; nanoGPT's MFU is relative to it


def GPTConfig(vocab_size: int = 50304, **settings: Any) -> ModelConfig:
    """Return the config of a model: block_size, n_layer, n_head, n_embd, dropout, bias, or any other key of `model.`.

    Defaults are those of GPT-2 124M. Raises BadInput with the message of the command line.
    """
    return from_dict(ModelConfig, {"vocab_size": vocab_size, **settings})


class NanoGPT(GPT):
    """GPT whose forward pass returns logits and mean loss. `import nanogpt` offers it as `nanogpt.GPT`."""

    @classmethod
    def from_pretrained(
        cls, init_from: str, override_args: Mapping[str, Any] | None = None, **overrides: Any
    ) -> "NanoGPT":
        """Load OpenAI's weights (gpt2, gpt2-medium, gpt2-large, gpt2-xl), or others that `init_from` takes.

        `overrides` may set dropout and a smaller block_size. Raises BadInput, BadCheckpoint, BadEnvironment.
        """
        values = {"name": "pretrained", **(override_args or {}), **overrides}
        model = cls(from_dict(ModelConfig, fill_from_weights(init_from, values)), seed=None)
        load_weights(model, find_source(init_from))
        return model

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (B, T, P) logits of (B, T) ids, and their mean loss in nats per token; targets of -1 do not count.

        Without targets, return (B, 1, P) logits of the last position and None. In training mode dropout is drawn from
        torch's random state.
        """
        keys = None
        if self.training and self.config.dropout:
            keys = torch.randint(2**62, (len(idx),)).to(idx.device)
        x = self.features(idx, keys=keys)
        if targets is None:
            return self.logits(x[:, -1:]), None
        logits = self.logits(x)
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    def generate(self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
        """Append `max_new_tokens` sampled ids to (B, T) ids. Draws depend on torch's random state."""
        seeds = torch.randint(2**62, (len(idx),)).tolist()
        generators = [torch.Generator(idx.device).manual_seed(seed) for seed in seeds]
        params = SamplingParams(temperature=temperature, top_k=top_k, vocab_size=self.config.vocab_size)
        drawn = list(generate(self, idx.tolist(), max_new_tokens, params, generators))
        return torch.cat([idx, torch.tensor(drawn, dtype=idx.dtype, device=idx.device).view(-1, len(idx)).T], dim=1)

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context. Raises BadInput if the model's is shorter."""
        if not 0 < block_size <= self.config.block_size:
            raise BadInput(f"block_size={block_size}: allowed: 1 to {self.config.block_size}")
        self.config = self.config.model_copy(update={"block_size": block_size})
        if not self.config.is_rotary:
            positions: Any = self.transformer["wpe"]
            positions.weight, positions.num_embeddings = Parameter(positions.weight[:block_size].detach()), block_size

    def configure_optimizers(
        self, weight_decay: float, learning_rate: float, betas: tuple[float, float], device_type: str
    ) -> Optimizer:
        """Return AdamW, fused where the device has it, that decays matrices and embeddings only. Raises BadInput."""
        values = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay}
        return build_optimizer(self, from_dict(OptimizerConfig, values), device_type)

    def estimate_mfu(self, fwdbwd_per_iter: float, dt: float, peak_flops: float = A100_BF16_FLOPS) -> float:
        """Return the model FLOPs utilization of `fwdbwd_per_iter` sequences in `dt` seconds (Chowdhery et al. 2022).

        `peak_flops` is the device's peak in FLOP/s.
        """
        return flops_per_token(self.config) * self.config.block_size * fwdbwd_per_iter / dt / peak_flops

    def get_num_params(self, non_embedding: bool = True) -> int:
        """Return the number of parameters, by default without position embeddings."""
        counts = parameter_counts(self.config)
        return counts["total"] - (counts.get("position embedding", 0) if non_embedding else 0)
