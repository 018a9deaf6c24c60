"""A value that is in no list ends in an error everywhere: nothing takes the unknown for what it knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from cli.config_files import choices
from cli.sweep_config import Search
from launch.search import suggest_values
from nanogpt import tokenizer as tokenizers
from nanogpt.checkpoint import Checkpoints
from nanogpt.config import (
    OPTIMIZERS,
    DataConfig,
    Gpu,
    ModelConfig,
    OptimizerConfig,
    ParametrizationConfig,
    Rule,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
)
from nanogpt.config.optimizer import EVERY_OPTIMIZERS_KEYS
from nanogpt.data import corpora
from nanogpt.data.sampler import Sampler
from nanogpt.estimates.flops import parameter_counts
from nanogpt.estimates.gpu_specs import GPU_SPECS
from nanogpt.estimates.memory import estimate_training_memory
from nanogpt.interop.export_config import to_hf_config
from nanogpt.model.gpt import GPT
from nanogpt.optim.build import build_optimizer
from nanogpt.optim.schedule import lr_scale
from nanogpt.schema import ConfigModel
from nanogpt.tracking.run_metadata import RunMetadata
from nanogpt.tracking.trackers import make_backend

SMALL = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=9)


def with_unknown(section: Any, key: str) -> Any:
    """Return a section with a value that no check has seen."""
    return section.model_copy(update={key: "unknown"})


def use_tracker(name: Any) -> object:
    about = RunMetadata(Path("runs/x"), "id", "x", None, {}, TrackingConfig())
    return make_backend(name, about, lambda _: None)


USES: list[tuple[str, Callable[[], object]]] = [
    ("activation", lambda: GPT(with_unknown(SMALL, "activation"))),
    ("norm", lambda: GPT(with_unknown(SMALL, "norm"))),
    ("position", lambda: GPT(with_unknown(SMALL, "position"))),
    ("init", lambda: GPT(with_unknown(SMALL, "init"), seed=1)),
    ("activation counted", lambda: parameter_counts(with_unknown(SMALL, "activation"))),
    ("norm counted", lambda: parameter_counts(with_unknown(SMALL, "norm"))),
    ("position counted", lambda: parameter_counts(with_unknown(SMALL, "position"))),
    ("conv counted", lambda: parameter_counts(SMALL.model_copy(update={"conv": ("unknown",)}))),
    ("precision", lambda: estimate_training_memory(SMALL, "unknown", 1)),  # type: ignore[arg-type]
    ("optimizer counted", lambda: estimate_training_memory(SMALL, "fp32", 1, rule="unknown")),  # type: ignore[arg-type]
    ("optimizer", lambda: build_optimizer(GPT(SMALL), with_unknown(OptimizerConfig(), "name"), "cpu")),
    ("schedule", lambda: lr_scale(3, 9, with_unknown(ScheduleConfig(), "name"))),
    ("parametrization", lambda: with_unknown(ParametrizationConfig(), "name").width_multiplier(64)),
    ("tokenizer", lambda: tokenizers.build("unknown", [])),  # type: ignore[arg-type]
    ("tracker", lambda: use_tracker("unknown")),
    ("corpus", lambda: corpora.find_corpus(DataConfig().model_copy(update={"corpus": "unknown"}))),
    ("order", lambda: Sampler([99], 8, 1, "unknown")),  # type: ignore[arg-type]
    ("exported position", lambda: to_hf_config(with_unknown(SMALL, "position"))),
    ("optuna sampler", lambda: suggest_values(with_unknown(Search(), "sampler"), [], [], 0, 1)),
    ("checkpoint", lambda: Checkpoints(Path("none")).load("unknown")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("use", [use for _, use in USES], ids=[name for name, _ in USES])
def test_an_unknown_choice_is_an_error(use: Callable[[], object]) -> None:
    with pytest.raises((KeyError, AssertionError)):
        use()


def test_every_optimizer_is_declared_and_has_a_file() -> None:
    assert set(OPTIMIZERS) == set(get_args(Rule)) == set(choices("optimizer"))
    declared = {key for one in OPTIMIZERS.values() for key in one.keys}
    assert declared | set(EVERY_OPTIMIZERS_KEYS) == set(OptimizerConfig.model_fields)
    assert not declared & set(EVERY_OPTIMIZERS_KEYS)


def test_every_gpu_has_its_numbers() -> None:
    assert set(GPU_SPECS) == set(get_args(Gpu))


def test_every_label_is_a_file_of_its_group() -> None:
    """The choices of `name` in a group's section are the group's files."""
    for group in ("schedule", "parametrization", "tracking"):
        section = TrainConfig.model_fields[group].annotation
        assert isinstance(section, type) and issubclass(section, ConfigModel)
        names = {word for kind in get_args(section.model_fields["name"].annotation) for word in words_in(kind)}
        assert names == set(choices(group)), group


def words_in(kind: Any) -> list[str]:
    """Return the texts of a Literal's value, or of a Literal inside it."""
    return [kind] if isinstance(kind, str) else [word for one in get_args(kind) for word in words_in(one)]
