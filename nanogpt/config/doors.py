"""What the other commands take."""

from typing import Annotated, Literal

from pydantic import Field

from nanogpt.config.corpus import DataConfig
from nanogpt.config.run import TrainConfig
from nanogpt.schema import Section, free


class TrainedConfig(Section):
    """Which trained model a command works with, and where."""

    run: str | None = free(None, "run directory; null: the latest under runs_dir, unless init_from is given")
    runs_dir: str = free("runs", "folder of all run directories")
    checkpoint: Literal["best", "latest"] = free("best", "which checkpoint of the run")
    init_from: str | None = free(
        None, "instead of a run: gpt2, gpt2_medium, gpt2_large, gpt2_xl, a Hugging Face folder, or nanoGPT's ckpt.pt"
    )
    tokenizer: str | None = free(
        None, "init_from: gpt2, or a folder that has tokenizer.json; null: found with the weights"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = free(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )


class SampleConfig(TrainedConfig):
    """Text from a trained model."""

    prompt: str = free("", "text to continue; empty: the start of a document", literal=True)
    num_samples: int = free(1, "samples, one after the other", ge=1, le=100_000)
    max_new_tokens: int = free(500, "tokens to generate per sample", ge=0, le=10_000_000)
    temperature: float = free(0.8, "divides the logits; 0 is greedy", ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = free(None, "keep the k likeliest tokens; null: all", ge=1, le=2**31)
    top_p: float = free(1.0, "keep the likeliest tokens that together reach this probability", gt=0, le=1)
    seed: int = free(1337, "of the draws; sample i uses (seed, i)", ge=0, lt=2**63)
    stream: bool = free(True, "show every token as it is drawn")


class PrepareConfig(Section):
    """Tokenise a data set before training on it."""

    data: DataConfig = free(DataConfig(), "text and tokens")
    overwrite: bool = free(False, "prepare again, replacing what is there")


class BenchSettings(Section):
    """How long to measure."""

    warmup: int = free(5, "training steps before the clock starts", ge=1, le=10_000)
    steps: int = free(20, "training steps that are timed", ge=1, le=100_000)
    checkpoint: bool = free(False, "time saving, verifying and restoring too; writes below runs_dir")
    ranks: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(strict=False)] = free(
        (), "numbers of ranks to compare in whole trainings, e.g. [1,2]"
    )
    startup: bool = free(True, "time the commands from process start too")
    out: str | None = free(None, "Markdown file to append the result to, e.g. docs/benchmarks.md")


class BenchConfig(TrainConfig):
    """A training run whose step is timed instead of trained."""

    bench: BenchSettings = free(BenchSettings(), "how long to measure")
