"""What a model costs: parameters per part, floating-point operations per token, and the peaks of devices."""

from torch import nn

from nanogpt.config import ModelConfig

PEAK_TFLOPS = {  # dense bf16 or fp16 matrix products with fp32 accumulation, from the makers' data sheets
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": 989.4,
    "A100": 311.9,
    "A800": 311.9,
    "L40S": 362.1,
    "L4": 121.0,
    "A40": 149.7,
    "A10G": 70.0,
    "RTX A6000": 154.8,
    "V100": 125.0,
    "T4": 65.1,
    "RTX 4090": 165.2,
    "RTX 3090": 71.2,
}


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters per part, tied weights once: token embedding, position embedding, attention, MLP, norms, total."""
    parts = {"token embedding": 0, "position embedding": 0, "attention": 0, "mlp": 0, "norms": 0}
    words = {"wte": "token embedding", "wpe": "position embedding", "attn": "attention", "mlp": "mlp"}
    for name, parameter in model.named_parameters():
        part = next((part for word, part in words.items() if f".{word}." in name), "norms")
        parts[part] += parameter.numel()
    return parts | {"total": sum(parts.values())}


def parameter_estimate(config: ModelConfig) -> int:
    """The number of parameters without building the model: matrices and embeddings, an unset vocabulary as 50,257."""
    embeddings = (config.vocab_size or 50_257) + config.block_size
    return config.n_embd * (embeddings + 12 * config.n_layer * config.n_embd)


def flops_per_token(config: ModelConfig, n_params: int) -> float:
    """Forward and backward: 6 N + 12 L C T, N without position embeddings (Chowdhery et al. 2022, appendix B).

    The attention term counts the full square of positions, causal or not, as is usual for MFU.
    """
    n = n_params - config.block_size * config.n_embd
    return 6.0 * n + 12.0 * config.n_layer * config.n_embd * config.block_size


def peak_flops(device_name: str, precision: str) -> float | None:
    """A device's peak for this precision in FLOP/s, or None where it isn't known: then there is no MFU."""
    if precision not in ("bf16", "fp16"):
        return None
    words = device_name.replace("-", " ")
    for name, tflops in PEAK_TFLOPS.items():
        if f" {name} " in f" {words} ":
            return tflops * 1e12
    return None
