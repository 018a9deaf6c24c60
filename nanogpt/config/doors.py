"""What the other commands take."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.corpus import DataConfig
from nanogpt.config.evaluation import EvaluationConfig
from nanogpt.config.fields import Count
from nanogpt.config.run import TrainConfig
from nanogpt.schema import Section, free, refuse, values


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


class EvaluateConfig(TrainedConfig):
    """Numbers about a trained model."""

    data: DataConfig = free(DataConfig(), "eval=loss: the data set, data=NAME; null: the one the run was trained on")
    eval: EvaluationConfig = free(EvaluationConfig(), "tasks and their documents")
    devices: int | None = free(
        None, "ranks on this machine, one device each, started by this command; null: one, or torchrun's", ge=1, le=64
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = free(
        "auto", "of matrix products; auto: bf16 on GPU, else fp32"
    )
    batch_tokens: Count | None = free(None, "tokens per forward pass; null: 2,048 on the CPU, else 32,768")
    out: str | None = free(
        None, "JSON lines file the results are added to; null: the run directory's evaluations.jsonl, if there is a run"
    )

    @model_validator(mode="after")
    def _data_is_chosen(self) -> Self:
        if not self.has_data:
            usual = dict(values(DataConfig(), "data."))
            for key, value in values(self.data, "data."):
                if value != usual[key]:
                    raise refuse(key, value, "of which data set? choose one too, e.g. data=text")
            if self.init_from is not None and "loss" in self.eval.tasks:
                raise refuse("data", None, "eval=loss with init_from needs a data set, e.g. data=openwebtext")
        return self

    @property
    def has_data(self) -> bool:
        """Whether a data set was chosen: every one has a name."""
        return self.data.name != DataConfig().name


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
