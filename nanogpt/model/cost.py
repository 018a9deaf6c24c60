"""What a model costs: parameters per part, floating-point operations per token, and the peaks of devices."""

import re

from torch import nn

from nanogpt.config import ModelConfig

# Dense bf16 or fp16 matrix products with fp32 accumulation, from the makers' data sheets, by the device's whole name: a
# laptop's, a slice's (MIG) or a successor's name is another device.
PEAK_TFLOPS = {
    r"B200": 2250.0,
    r"GH200 \d+GB?( HBM3e)?": 989.4,
    r"H200": 989.4,
    r"H100( 80GB HBM3)?": 989.4,
    r"H100 NVL": 835.5,
    r"H100 PCIe": 756.5,
    r"A100(-SXM4-\d+GB|-PCIE-\d+GB|-SXM-\d+GB| 80GB PCIe)": 311.9,
    r"A800-SXM4-\d+GB": 311.9,
    r"L40S": 362.1,
    r"L4": 121.0,
    r"A40": 149.7,
    r"RTX A6000": 154.8,
    r"GeForce RTX 4090": 165.2,
    r"GeForce RTX 3090": 71.2,
}
PEAK_TFLOPS_FP16 = {r"Tesla V100-SXM2-\d+GB": 125.0, r"Tesla T4": 65.1}  # these have no bf16


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
    table = {"bf16": PEAK_TFLOPS, "fp16": PEAK_TFLOPS | PEAK_TFLOPS_FP16}.get(precision, {})
    name = device_name.removeprefix("NVIDIA ")
    return next((tflops * 1e12 for pattern, tflops in table.items() if re.fullmatch(pattern, name)), None)
