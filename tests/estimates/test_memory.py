"""The memory estimate against what autograd keeps, what the loss holds, and what a checkpoint takes on disk."""

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nanogpt.config import OPTIMIZERS, ModelConfig, OptimizerConfig, Precision, Rule
from nanogpt.estimates.memory import CHUNK_BYTES, checkpoint_bytes, estimate_training_memory, largest_micro_batch
from nanogpt.model.gpt import GPT
from nanogpt.optim.build import build_optimizer
from tests.estimates.test_flops import SWITCHES, every_combination, small

SHAPES: list[dict[str, object]] = [  # of several proportions of width, length, heads and depth
    {},
    {"n_layer": 3, "n_head": 8, "n_embd": 128, "block_size": 64},
    {"n_layer": 1, "n_head": 4, "n_embd": 32, "block_size": 128},
    {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 16, "vocab_size": 1000},
]


def kept_by_autograd(
    config: ModelConfig, precision: Precision, sequences: int, recompute: bool = False, recompute_weights: bool = False
) -> tuple[int, int]:
    """Return (bytes of all storages that a forward pass saves, parameters apart; bytes of the loss's own gradients)."""
    model = GPT(config)
    model.activation_checkpointing = recompute
    model.recompute_attention_weights = recompute_weights
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            alive.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(50, (sequences, config.block_size))
    keys = torch.arange(sequences) if config.dropout else None
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        loss: Any = model(ids, ids, keys=keys)
    gradients = loss.grad_fn.grads
    return sum(one.untyped_storage().nbytes() for one in alive.values()), sum(one.nbytes for one in gradients)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's, of RMS norms under autocast
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(precision: Precision) -> None:
    combinations = list(every_combination())[{"fp32": 0, "bf16": 7}[precision] :: 15]
    assert all({one[name] for one in combinations} == {*values} for name, values in SWITCHES.items())
    for number, changes in enumerate(combinations):
        for dropout in (0.0, 0.1)[number % 2 :: 2]:
            config = small(**changes, dropout=dropout)
            estimate, (kept, _) = estimate_training_memory(config, precision, 3), kept_by_autograd(config, precision, 3)
            assert abs(estimate.activations / kept - 1) < 0.02, (changes, dropout)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps_at_every_shape(
    shape: dict[str, object], dropout: float, precision: Precision
) -> None:
    config = small(**shape, dropout=dropout)
    for sequences in (1, 8):
        kept, _ = kept_by_autograd(config, precision, sequences)
        assert abs(estimate_training_memory(config, precision, sequences).activations / kept - 1) < 0.02


def test_the_loss_holds_its_gradients_the_features_and_one_chunk_of_logits() -> None:
    config = small(n_embd=32, block_size=64, vocab_size=40_000)
    _, gradients = kept_by_autograd(config, "fp32", 40)
    features, rows = 4 * 40 * 64 * 32, CHUNK_BYTES // (4 * config.padded_vocab_size)
    assert rows < 40 * 64, "the logits don't fit in one chunk"
    assert (
        estimate_training_memory(config, "fp32", 40).loss == gradients + features + 4 * rows * config.padded_vocab_size
    )


@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("shape", [{}, {"activation": "swiglu", "n_kv_head": 2, "tie_weights": False}], ids=str)
def test_the_state_is_what_the_optimizer_and_the_model_hold(rule: Rule, shape: dict[str, object]) -> None:
    config = small(**shape)
    model = GPT(config)
    optimizer = build_optimizer(model, OptimizerConfig(name=rule), "cpu")
    ids = torch.randint(50, (2, 12))
    model(ids, ids).backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())  # Muon uses some of them up
    optimizer.step()
    estimate = estimate_training_memory(config, "fp32", 2, rule=rule)
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.gradients == gradients
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert estimate.optimizer_state == sum(value.nbytes for value in states)
    assert checkpoint_bytes(config, rule) == estimate.weights + estimate.optimizer_state
    assert estimate.state == estimate.weights + estimate.gradients + estimate.optimizer_state


def test_open_attention_is_quadratic_and_fused_attention_is_not() -> None:
    def growth(**changes: object) -> float:
        short, long = (
            estimate_training_memory(small(block_size=T, **changes), "bf16", 1).activations for T in (1024, 4096)
        )
        return long / short

    assert growth() < 4.01 and growth(dropout=0.1) > 12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"position": "rotary"}, {"n_kv_head": 2}, {"position": "rotary", "n_kv_head": 2}]
)
def test_a_gpu_keeps_no_attention_weights(shape: dict[str, object], changes: dict[str, object]) -> None:
    config = small(**shape, **changes, dropout=0.1)
    kept, _ = kept_by_autograd(config, "fp32", 4, recompute_weights=True)
    assert abs(estimate_training_memory(config, "fp32", 4, gpu=True).activations / kept - 1) < 0.02


def test_nanogpts_checkpoint() -> None:
    """Its notebook: 1.49 GB estimated, 1,542,470,366 bytes measured with all that is in the file."""
    config = ModelConfig(vocab_size=50_257, bias=False)
    assert checkpoint_bytes(config) == 12 * 124_337_664
    assert abs(checkpoint_bytes(config) / 1_542_470_366 - 1) < 0.04


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    config = small()

    def needed(sequences: int) -> int:
        return estimate_training_memory(config, "fp32", sequences).total

    assert largest_micro_batch([1, 2, 3, 6, 12], needed(6), needed) == 6
    assert largest_micro_batch([1, 2, 3, 6, 12], needed(6) - 1, needed) == 3
    assert largest_micro_batch([1, 2], 1000, needed) is None


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's, of RMS norms under autocast
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("modern", "dropout", "precision"),
    [
        (False, 0.2, "fp32"),
        (True, 0.0, "bf16"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in itertools.product((False, True), (0.0, 0.2), ("fp32", "bf16"))
            if case not in ((False, 0.2, "fp32"), (True, 0.0, "bf16"))
        ),
    ],
)
def test_recomputed_activations_are_inputs_and_one_block(
    shape: dict[str, object], modern: bool, dropout: float, precision: Precision
) -> None:
    """What the forward pass keeps, and beside it a block: what a model of one block more keeps without recomputing."""
    switches = {"norm": "rmsnorm", "position": "rotary", "activation": "swiglu", "qk_norm": True} if modern else {}
    config = small(**shape, **switches, dropout=dropout)
    one, two = (kept_by_autograd(config.model_copy(update={"n_layer": n}), precision, 4)[0] for n in (1, 2))
    kept, _ = kept_by_autograd(config, precision, 4, recompute=True)
    matrices = sum(p.numel() for p in GPT(config).transformer["h"].parameters() if p.dim() == 2)
    copies = 2 * matrices * (config.n_layer - 1) // config.n_layer if precision == "bf16" else 0  # autocast has them
    inputs = 4 * config.block_size * config.n_embd * 4  # of the block itself, in both
    estimate = estimate_training_memory(config, precision, 4, recompute=True).activations
    assert abs(estimate / (kept + two - one + copies - inputs) - 1) < 0.03
    assert config.n_layer < 3 or kept < 0.5 * kept_by_autograd(config, precision, 4)[0]
