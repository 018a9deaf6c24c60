"""What is measured, how long, and against which other programs."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from nanogpt.config.train import TrainConfig
from nanogpt.config.types import split_list
from nanogpt.errors import one_line
from nanogpt.schema import ConfigModel, field_error, free

NANOGPT = "nanogpt:"  # followed by the path of a checkout

What = Literal["training", "generation"]


class BenchSettings(ConfigModel):
    """What is measured, and how long."""

    what: Annotated[tuple[What, ...], Field(strict=False, min_length=1), BeforeValidator(split_list)] = free(
        ("training",), "the training step, or decoding with a cache, or both: [training,generation]"
    )
    warmup: int = free(5, "training steps before the clock starts", ge=1, le=10_000)
    steps: int = free(20, "training steps that are timed", ge=1, le=100_000)
    new_tokens: int = free(256, "generation: tokens drawn for each text", ge=2, le=1_000_000)
    prompt_tokens: int = free(1, "generation: tokens of each prompt", ge=1, le=1_000_000)
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(strict=False, min_length=1), BeforeValidator(split_list)
    ] = free((1, 8), "generation: numbers of texts drawn at once")
    rounds: int = free(3, "fresh processes of each program, which take turns", ge=1, le=1000)
    checkpoint: bool = free(False, "time saving, verifying and restoring too; writes below runs_dir")
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(strict=False)] = free(
        (), "numbers of ranks to compare in whole trainings, e.g. [1,2]"
    )
    startup: bool = free(True, "time the commands from process start too")
    trace: str | None = free(None, "profile=true: folder for the traces; null: runs_dir", min_length=1)
    out: str | None = free(None, "Markdown file to append the result to, e.g. docs/benchmarks.md")


class BenchConfig(TrainConfig):
    """A training run whose step, or whose model's decoding, is timed instead of trained."""

    bench: BenchSettings = free(BenchSettings(), "what is measured")
    against: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(split_list)] = free(
        (),
        "compared with, in turn: nanogpt:PATH, a checkout whose code is run, and for generation transformers",
        literal=True,
    )
    profile: bool = free(
        False, "this program once more under torch.profiler: a trace file, and a table of the top kernels"
    )

    @model_validator(mode="after")
    def _measures_one_device(self) -> Self:
        for key, value, usual in (
            ("nodes", self.hardware.nodes or 1, 1),
            ("devices", self.hardware.devices or 1, 1),
            ("strategy", self.hardware.strategy, "ddp"),
        ):
            if value != usual:
                why = f"one device is measured; give {usual}, and bench.ranks=[2] to time trainings on several ranks"
                raise field_error(f"hardware.{key}", value, why)
        return self

    @model_validator(mode="after")
    def _rivals_can_do_it(self) -> Self:
        for name in self.against:
            if name != "transformers" and (name == NANOGPT or not name.startswith(NANOGPT)):
                raise field_error("against", one_line(name), "no such program; allowed: nanogpt:PATH, transformers")
        if self.against and "training" in self.bench.what and not self.checkouts:
            why = "can only be compared in generation: bench.what=generation; training needs nanogpt:PATH"
            raise field_error("against", "transformers", why)
        length = self.bench.prompt_tokens + self.bench.new_tokens
        if "transformers" in self.against and length > self.model.block_size:
            why = (
                f"has no place for more than model.block_size={self.model.block_size} tokens, and is asked for {length}"
            )
            raise field_error("against", "transformers", f"{why}; set bench.new_tokens")
        return self

    @property
    def checkouts(self) -> tuple[str, ...]:
        """The rivals that are checkouts of nanoGPT."""
        return tuple(name for name in self.against if name.startswith(NANOGPT))
