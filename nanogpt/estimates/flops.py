"""Parameters and floating-point operations of a model, computed from its shape.

T time, C channels, F channels inside the MLP, H heads, K heads of keys and values, D head size, L layers, P vocabulary
padded to a multiple, N parameters. A product of (m, k) and (k, n) is 2 m k n operations.
"""

from nanogpt.config import ConvPlace, ModelConfig, TrainConfig


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Return the parameters of each part that the model has, tied weights once, and the total."""
    C, rows, bias = config.n_embd, config.padded_vocab_size, int(config.bias)
    gains = config.norm_affine * (2 if config.bias and config.norm_subtracts_mean else 1)
    parts = {
        "token embedding": rows * C,
        "position embedding": 0 if config.is_rotary else config.block_size * C,
        "attention": config.n_layer * attention_parameters(config),
        "mlp": config.n_layer * sum(n_in * n_out + bias * n_out for n_in, n_out in mlp_shapes(config)),
        "norms": (2 * config.n_layer + 1) * C * gains,
        "convolutions": config.n_layer * config.conv_history * sum(conv_widths(config)),
        "head": 0 if config.tie_weights else rows * C,
    }
    return {name: count for name, count in parts.items() if count} | {"total": sum(parts.values())}


def attention_parameters(config: ModelConfig) -> int:
    """Return one layer's parameters: (C, C + 2 K D) and (C, C), their biases, the gains of query and key norms."""
    C, bias = config.n_embd, int(config.bias)
    qkv = qkv_width(config)
    return C * qkv + C * C + bias * (qkv + C) + config.qk_norm * config.norm_affine * 2 * config.head_size


def qkv_width(config: ModelConfig) -> int:
    """Return the channels of queries, keys and values together, C + 2 K D."""
    return sum(config.qkv_widths)


def conv_widths(config: ModelConfig) -> list[int]:
    """Return the channels of each convolution of a layer."""
    width: dict[ConvPlace, int] = {"attention": config.n_embd, "mlp": config.n_embd, "qkv": qkv_width(config)}
    return [width[place] for place in config.conv]


def mlp_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """Return (in, out) of a layer's two matrices, (C, F) and (F, C); with a gate, (C, 2 F) and (F, C)."""
    inside = config.mlp_width
    return [(config.n_embd, 2 * inside if config.is_gated else inside), (inside, config.n_embd)]


def forward_flops(config: ModelConfig) -> dict[str, float]:
    """Return the operations of a sequence's forward pass, per part and in total.

    Only matrix products count, and attention counts all pairs of positions, as in nanoGPT's transformer_sizing.
    """
    T, C, L = config.block_size, config.n_embd, config.n_layer
    parts = {
        "attention: queries, keys, values": 2.0 * L * T * C * qkv_width(config),
        "attention: scores": 2.0 * L * T * T * C,
        "attention: weighted sums": 2.0 * L * T * T * C,
        "attention: projection": 2.0 * L * T * C * C,
        "mlp": 2.0 * L * T * sum(n_in * n_out for n_in, n_out in mlp_shapes(config)),
        "head": 2.0 * T * C * config.padded_vocab_size,
    }
    return parts | {"total": sum(parts.values())}


def flops_per_token(config: ModelConfig) -> float:
    """Return the operations per token, forward and backward: 6 N + 12 L C T (Chowdhery et al. 2022, appendix B).

    N are the multiplied parameters; attention counts all pairs of positions.
    """
    return 6.0 * multiplied_parameters(config) + 12.0 * config.n_layer * config.n_embd * config.block_size


def multiplied_parameters(config: ModelConfig) -> int:
    """Return the parameters used in matrix products: all but position embeddings and untied token embeddings."""
    counts = parameter_counts(config)
    looked_up = counts.get("position embedding", 0) + (0 if config.tie_weights else counts["token embedding"])
    return counts["total"] - looked_up


def compute_total_steps(config: TrainConfig, model: ModelConfig) -> int:
    """Return the number of steps of a run of `model`, which has a vocabulary size."""
    return config.steps(parameter_counts(model)["total"], flops_per_token(model))
