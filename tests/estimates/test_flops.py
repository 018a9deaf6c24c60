"""Cost of a model: formulas against built models, torch's own counters, and nanoGPT's and OpenAI's numbers."""

import itertools
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogpt.config import Gpu, ModelConfig
from nanogpt.estimates.flops import flops_per_token, forward_flops, parameter_counts
from nanogpt.estimates.gpu_specs import GPU_SPECS, peak_bandwidth, peak_flops
from nanogpt.model.gpt import GPT

SWITCHES: dict[str, tuple[object, ...]] = {
    "norm": ("layernorm", "rmsnorm"),
    "position": ("learned", "rotary"),
    "qk_norm": (False, True),
    "n_kv_head": (None, 1, 2),
    "tie_weights": (True, False),
    "activation": ("gelu", "swiglu", "relu2"),
    "bias": (True, False),
    "norm_affine": (True, False),
    "conv": ((), ("attention", "qkv", "mlp")),
}


def small(**changes: object) -> ModelConfig:
    values = {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 12, "vocab_size": 50, "vocab_multiple": 64}
    return ModelConfig.model_validate({name: value for name, value in (values | changes).items() if value is not None})


def every_combination() -> Iterator[dict[str, object]]:
    return (dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values()))


def counted_parts(model: GPT) -> dict[str, int]:
    """Count the parameters of a built model by their names."""
    words = {
        "conv": "convolutions",
        "conv_1": "convolutions",
        "conv_2": "convolutions",
        "wte": "token embedding",
        "wpe": "position embedding",
        "attn": "attention",
        "mlp": "mlp",
        "lm_head": "head",
    }
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = next((part for word, part in words.items() if word in name.split(".")), "norms")
        found[part] = found.get(part, 0) + parameter.numel()
    return found | {"total": sum(found.values())}


def test_counts_are_those_of_built_models_for_combinations_of_switches() -> None:
    for changes in list(every_combination())[::17]:
        assert parameter_counts(small(**changes)) == counted_parts(GPT(small(**changes), seed=None)), changes


GPT2_SIZES = {  # layers, heads, width: parameters of OpenAI's models, as transformers counts them
    (12, 12, 768): 124_439_808,
    (24, 16, 1024): 354_823_168,
    (36, 20, 1280): 774_030_080,
    (48, 25, 1600): 1_557_611_200,
}


@pytest.mark.parametrize("shape", GPT2_SIZES)
def test_gpt2_has_its_published_number_of_parameters(shape: tuple[int, int, int]) -> None:
    layers, heads, width = shape
    config = ModelConfig(n_layer=layers, n_head=heads, n_embd=width, vocab_size=50_257)
    assert parameter_counts(config)["total"] == GPT2_SIZES[shape]


def test_nanogpts_transformer_sizing() -> None:
    """The numbers of its notebook, for GPT-2 small without biases and one sequence of 1,024."""
    config = ModelConfig(vocab_size=50_257, bias=False)
    assert parameter_counts(config)["total"] == 124_337_664
    assert forward_flops(config)["total"] == 291_648_307_200
    assert 3 * forward_flops(config)["total"] == 874_944_921_600
    assert flops_per_token(config) * 1024 == 875_062_886_400


def counted_flops(config: ModelConfig, backward: bool) -> float:
    """Return torch's count of one sequence's matrix products, with attention as plain products over the square."""
    model = GPT(config)
    ids = torch.randint(config.vocab_size or 0, (1, config.block_size))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if backward:
            model(ids, ids).backward()
        else:
            with torch.no_grad():
                model(ids, ids)
    return counter.get_total_flops()


def test_forward_flops_are_torchs_own_count() -> None:
    combinations = list(every_combination())[::37]
    assert all({one[name] for one in combinations} == {*values} for name, values in SWITCHES.items())
    for changes in combinations:
        config = small(**changes)
        assert forward_flops(config)["total"] == counted_flops(config, backward=False), changes


@pytest.mark.parametrize("switch", [{}, *({name: value[-1]} for name, value in SWITCHES.items())], ids=str)
def test_flops_per_token_agree_with_torchs_own_count(switch: dict[str, object]) -> None:
    """Forward and backward; the formula also counts what isn't a matrix product: gains, biases."""
    config = small(n_embd=96, n_layer=4, block_size=32, **switch)
    assert abs(flops_per_token(config) * 32 / counted_flops(config, backward=True) - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA A100-SXM4-40GB", "fp16", 311.9),
        ("NVIDIA A100-SXM4-40GB", "fp32", None),
        ("NVIDIA A100 80GB PCIe", "bf16", 311.9),
        ("Some CPU", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA L40S", "bf16", 362.1),
        ("NVIDIA L4", "bf16", 121.0),
        ("Tesla T4", "fp16", 65.1),
        ("Tesla T4", "bf16", None),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA B300 SXM6 AC", "bf16", 2250.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2),
        ("NVIDIA GeForce RTX 5090", "bf16", 209.5),
        ("NVIDIA GeForce RTX 5090 D", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
    ],
)
def test_peaks(name: str, precision: str, tflops: float | None) -> None:
    assert peak_flops(name, precision) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "terabytes"),
    [
        ("NVIDIA B200", 8.0),
        ("NVIDIA H200", 4.8),
        ("NVIDIA H100 80GB HBM3", 3.35),
        ("NVIDIA H100 PCIe", 2.0),
        ("NVIDIA H100 NVL", 3.9),
        ("NVIDIA GH200 480GB", 4.0),
        ("NVIDIA GH200 144G HBM3e", 4.9),
        ("NVIDIA A100-SXM4-80GB", 2.039),
        ("NVIDIA A100 80GB PCIe", 1.935),
        ("NVIDIA A100-PCIE-80GB", 1.935),
        ("NVIDIA A100-SXM4-40GB", 1.555),
        ("Tesla T4", 0.32),
        ("NVIDIA H200 NVL", 4.8),
        ("NVIDIA GeForce RTX 5090", 1.792),
        ("NVIDIA H20", None),
        ("Some CPU", None),
    ],
)
def test_bandwidths(name: str, terabytes: float | None) -> None:
    assert peak_bandwidth(name) == (None if terabytes is None else pytest.approx(terabytes * 1e12))


def test_every_gpu_that_can_be_named_is_known() -> None:
    assert get_args(Gpu) == tuple(GPU_SPECS)
