"""The typed config: identity, derived values, cross-field checks."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from nanogpt.config import (
    BenchConfig,
    EvaluateConfig,
    ModelConfig,
    PrepareConfig,
    SampleConfig,
    ScalingConfig,
    SizingConfig,
    TrainConfig,
)
from nanogpt.errors import BadInput
from nanogpt.schema import identity_fields, iter_fields, signature, to_json

Build = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hardware.device", "auto"),
        ("hardware.micro_batch_size", 2),
        ("tracking.log_every", 7),
        ("checkpoint.every", 9),
        ("name", "other"),
        ("runs_dir", "elsewhere"),
        ("data.dir", "elsewhere"),
        ("eval.hellaswag", "elsewhere"),
        ("data.workers", 3),
        ("model.name", "label"),
        ("new_attempt", True),
        ("dry_run", True),
        ("hardware.micro_batch_size", "auto"),
    ],
)
def test_what_is_not_science_leaves_the_signature(config: Build, key: str, value: object) -> None:
    assert signature(config(**{key: value})) == signature(config())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.n_layer", 3),
        ("optimizer.lr", 2e-2),
        ("training.seed", 1),
        ("training.steps", 21),
        ("schedule.name", "linear"),
        ("data.order", "random"),
        ("data.tokenizer", "byte"),
        ("eval.tokens", 512),
        ("training.eval_tasks", ["hellaswag"]),
    ],
)
def test_science_changes_the_signature(config: Build, key: str, value: object) -> None:
    assert signature(config(**{key: value})) != signature(config())


def test_signature_is_of_the_resolved_values(config: Build) -> None:
    """Writing out a default, or reading a config back from JSON, is the same experiment."""
    assert signature(config(**{"optimizer.weight_decay": 0.1})) == signature(config())
    assert signature(TrainConfig.model_validate_json(to_json(config()))) == signature(config())


def test_science_holds_what_can_change_the_result(config: Build) -> None:
    assert set(identity_fields(config())) == {
        *(
            "init_from",
            "init_from_sha256",
            "model",
            "data",
            "optimizer",
            "schedule",
            "parametrization",
            "training",
            "eval",
        ),
    }


def test_accumulation_is_derived(config: Build) -> None:
    built = config(**{"training.batch_tokens": 16 * 24, "hardware.micro_batch_size": 4})
    assert (built.batch_sequences, built.micro_batch_size(), built.grad_accum()) == (24, 4, 6)
    assert (built.micro_batch_size(3), built.grad_accum(3)) == (4, 2)


@pytest.mark.parametrize(
    ("batch", "world"), [(1, 1), (2, 1), (7, 1), (12, 4), (480, 1), (480, 8), (1024, 2), (1031, 1)]
)
def test_default_micro_batch_divides_and_fits(config: Build, batch: int, world: int) -> None:
    built = config(**{"training.batch_tokens": 1024 * batch, "model.block_size": 1024})
    assert batch // world % built.micro_batch_size(world) == 0
    assert built.micro_batch_size(world) * 1024 <= 16_384
    assert built.micro_batch_size(world) * built.grad_accum(world) * world == batch


def test_horizons(config: Build) -> None:
    assert config(**{"training.steps": 20}).steps(10**9, 1.0) == 20
    assert config(**{"training.steps": None, "training.tokens": 1281}).steps(0, 1.0) == 11
    assert config(**{"training.steps": None, "training.tokens_per_param": 2.0}).steps(640, 1.0) == 10
    for flops, steps in ((5000.0 * 128 * 9, 9), (5000.0 * 128 * 9 + 1, 10), (1.0, 1)):
        assert config(**{"training.steps": None, "training.flops": flops}).steps(0, 5000.0) == steps


def test_configs_are_frozen(config: Build) -> None:
    with pytest.raises(ValidationError):
        config().optimizer.lr = 1.0  # type: ignore[misc]


KINDS = [TrainConfig, BenchConfig, PrepareConfig, SampleConfig, EvaluateConfig, SizingConfig, ScalingConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_every_knob_has_a_meaning(kind: type[TrainConfig]) -> None:
    for key, field in iter_fields(kind):
        assert field.description and len(field.description) < 120, key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.n_head": 3}, "model.n_head=3: must divide model.n_embd=16; nearest 2, 4"),
        ({"training.batch_tokens": 100}, "training.batch_tokens=100: must be a multiple of model.block_size=16"),
        ({"hardware.micro_batch_size": 3}, "hardware.micro_batch_size=3: must divide the 8 sequences"),
        ({"schedule.warmup_steps": 21}, "schedule.warmup_steps=21: is above the run's length in steps=20"),
        ({"schedule.warmup_steps": 9, "schedule.decay_steps": 8}, "is above schedule.decay_steps=8"),
        ({"training.tokens": 5}, "exactly one of training.steps"),
        ({"data.tokenizer": "bpe"}, "data.tokenizer=bpe needs a size"),
        ({"data.vocab_size": 300}, "has a fixed vocabulary"),
        ({"data.source": None}, "data=text needs your files"),
    ],
)
def test_impossible_combinations(config: Build, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as error:
        config(**changes)
    assert message in str(error.value)


def test_every_key_of_the_network_is_read_by_code() -> None:
    """A key that nothing reads would be accepted and change nothing."""
    root = Path(__file__).parents[1] / "nanogpt"
    sources = [root / "config" / "model.py", *(root / "model").glob("*.py"), *(root / "training").glob("*.py")]
    read = {
        node.attr
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert ModelConfig.model_fields.keys() - {"name"} <= read  # name: a label
