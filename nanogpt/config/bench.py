"""Keys of bench.py: what to measure, for how long, and the programs to compare with."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from nanogpt.config.train import TrainConfig
from nanogpt.config.types import split_list
from nanogpt.errors import one_line
from nanogpt.fields import free
from nanogpt.schema import ConfigModel, field_error

NANOGPT = "nanogpt:"  # followed by the path of a checkout

What = Literal["training", "generation", "models"]
Way = Literal["alone", "network", "processes"]
"""How several models are trained: one after the other, as one network, or each in a process of its own."""


class BenchSettings(ConfigModel):
    """Measurements and their length."""

    what: Annotated[tuple[What, ...], Field(strict=False, min_length=1), BeforeValidator(split_list)] = free(
        ("training",),
        "training: the training step; generation: decoding; models: several models at once; or a list of these",
    )
    models: int = free(8, "models: number of models", ge=2, le=1024)
    warmup: int = free(5, "training: steps to run before the timed ones", ge=1, le=10_000)
    steps: int = free(20, "training: steps to time in each round", ge=1, le=100_000)
    new_tokens: int = free(256, "generation: tokens to generate per text", ge=2, le=1_000_000)
    prompt_tokens: int = free(1, "generation: tokens in each prompt", ge=1, le=1_000_000)
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(strict=False, min_length=1), BeforeValidator(split_list)
    ] = free((1, 8), "generation: batch sizes to time, in texts")
    rounds: int = free(3, "number of rounds; in each, every program runs once in a new process", ge=1, le=1000)
    checkpoint: bool = free(False, "also time saving, verifying and restoring a checkpoint; writes to runs_dir")
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(strict=False)] = free(
        (), "also time whole trainings on these numbers of ranks, e.g. [1,2]; empty: none"
    )
    startup: bool = free(True, "also time how long commands take to start")
    trace: str | None = free(None, "profile=true: folder for the trace files; null: runs_dir", min_length=1)
    out: str | None = free(None, "Markdown file to append the results to, e.g. docs/benchmarks.md; null: only print")


class BenchConfig(TrainConfig):
    """A training run to time instead of train: its step, or decoding with its model."""

    bench: BenchSettings = free(BenchSettings(), "measurements")
    against: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(split_list)] = free(
        (),
        "programs to compare with: nanogpt:PATH, a checkout of nanoGPT; for generation also transformers",
        literal=True,
    )
    profile: bool = free(
        False, "also run under torch.profiler: write a trace file and print a table of the slowest kernels"
    )

    @model_validator(mode="after")
    def _check_one_device(self) -> Self:
        for key, value, usual in (
            ("nodes", self.hardware.nodes or 1, 1),
            ("devices", self.hardware.devices or 1, 1),
            ("strategy", self.hardware.strategy, "ddp"),
        ):
            if value != usual:
                why = f"bench measures one device; give {usual}, and bench.ranks=[2] to time trainings on several ranks"
                raise field_error(f"hardware.{key}", value, why)
        return self

    @model_validator(mode="after")
    def _check_baselines(self) -> Self:
        for name in self.against:
            if name != "transformers" and (name == NANOGPT or not name.startswith(NANOGPT)):
                raise field_error("against", one_line(name), "no such program; allowed: nanogpt:PATH, transformers")
        if self.against and self.bench.what == ("models",):
            raise field_error("against", ",".join(map(one_line, self.against)), "not with bench.what=models")
        if self.against and "training" in self.bench.what and not self.checkouts:
            why = "can only be compared in generation; give bench.what=generation, or nanogpt:PATH for training"
            raise field_error("against", "transformers", why)
        length = self.bench.prompt_tokens + self.bench.new_tokens
        if "transformers" in self.against and length > self.model.block_size:
            limit = f"at most model.block_size={self.model.block_size} tokens"
            raise field_error("against", "transformers", f"holds {limit}, {length} are asked for; set bench.new_tokens")
        return self

    @property
    def checkouts(self) -> tuple[str, ...]:
        """Programs of `against` that are checkouts of nanoGPT."""
        return tuple(name for name in self.against if name.startswith(NANOGPT))
