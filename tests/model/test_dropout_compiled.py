"""Compiled dropout gives eager dropout's bits, forward and backward, for any shape."""
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.model.dropout import dropout
from nanogpt.model.gpt import GPT
from nanogpt.training.state import compile_model

PRESETS = Path(__file__).parents[2] / "conf" / "model"

KEYS = torch.randint(-(2**62), 2**62, (6,), generator=torch.Generator().manual_seed(1))
SHAPES = [(7,), (72,), (10, 10), (80,), (9, 16), (1, 6, 6), (2, 50, 50), (36, 27)]
"""Elements of one sequence: odd counts, multiples of 4 and of 64, and counts that a view of int16 got wrong."""


def apply(tensors: list[Tensor], keys: Tensor) -> list[Tensor]:
    """Apply dropout to tensors of many shapes, so that one compilation covers all of them."""
    return [dropout(x, 0.2, keys[: len(x)], place) for place, x in enumerate(tensors)]


def check_equal(shapes: list[tuple[int, ...]]) -> str:
    """Compare values and gradients, and return the compiled code."""
    from torch._inductor.utils import run_and_get_code  # seconds, which collecting the tests need not take

    torch._dynamo.reset()
    inputs = [torch.randn(1 + i % 6, *shape, requires_grad=True) for i, shape in enumerate(shapes)]
    eager = apply(inputs, KEYS)
    with torch._inductor.config.patch(fx_graph_cache=False):
        compiled, codes = run_and_get_code(torch.compile(apply, dynamic=False), inputs, KEYS)
    for shape, x, expected, found in zip(shapes, inputs, eager, compiled, strict=True):
        assert torch.equal(found, expected), shape
        (gradient,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
        assert torch.equal(gradient, torch.autograd.grad(expected.square().sum(), x)[0]), shape
    assert codes
    return "\n".join(codes)


def test_compiled_equals_eager() -> None:
    """The code has no wide constant in an index expression either, and writes no words of masks to memory."""
    check_code(check_equal(SHAPES[1:2]))


def check_code(code: str) -> None:
    """Look for constants that Triton refuses, and for tensors of 64-bit integers.

    Inductor folds `arange * constant` into an index expression (pytorch/pytorch#175966), which Triton computes in 32
    bits. The C++ of a CPU shows it too.
    """
    wide = (
        r"\(?-?\d{10,}L*\)?\s*\*\s*\(?x\d|x\d\)?\s*\*\s*\(?-?\d{10,}|c10::convert<int64_t>\([^;]*\d{11,}[^;]*x\d[^;]*\)"
    )
    assert not re.findall(wide, code)
    assert "empty_strided_cpu(" in code and not re.findall(r"empty_strided_cpu\(\(\d+, \d.*torch.int64\)", code)


def small_presets() -> dict[str, ModelConfig]:
    """Return each preset with two small layers and dropout; of those that differ in size only, the first."""
    size = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "block_size": 24,
        "vocab_size": 61,
        "vocab_multiple": 1,
        "dropout": 0.1,
    }
    found: dict[str, ModelConfig] = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        values: dict[str, Any] = yaml.safe_load(path.read_text())["model"] | size | {"name": "small"}
        if path.stem == "pretrained":
            continue
        config = ModelConfig.model_validate(values | ({"rope_base": 100.0} if "rope_base" in values else {}))
        if config not in found.values():
            found[path.stem] = config
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's, of RMS norms under autocast
@pytest.mark.parametrize("name", small_presets())
def test_the_code_of_every_preset(name: str) -> None:
    """All switches of each model, forward and backward."""
    from torch._inductor.utils import run_and_get_code

    model = GPT(small_presets()[name])
    ids, forward = torch.randint(61, (3, 24)), compile_model(model)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(ids, ids, keys=KEYS[:3])
        loss.backward()

    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False):
        _, codes = run_and_get_code(step)
    assert len(codes) >= 3, "features, their gradients, a chunk of the loss"
    check_code("\n".join(codes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_compiled_equals_eager_for_random_shapes(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 60, (5, 2), generator=draw).tolist()
    check_equal([*SHAPES[4 * seed : 4 * seed + 4], *((height, width) for height, width in sizes), (4 * (seed + 17),)])


def test_nothing_else_reinterprets_memory() -> None:
    """`view(dtype)` of a computed tensor is what torch.compile got wrong. The safetensors writer is never compiled."""
    sources = Path(__file__).parents[2].glob("nanogpt/**/*.py")
    found = {
        path.name for path in sources if re.search(r"\.view\((dtype=)?(torch\.)?u?(int|float|bf)", path.read_text())
    }
    assert found <= {"safetensors_writer.py"}
