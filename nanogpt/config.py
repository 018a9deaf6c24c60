"""Every knob of the platform: what it means, its unit, its range and its default.

YAML and overrides become one of the frozen models below exactly once, at the door (`conf/door.py`); everything after
that is typed. A field is *science* when it can change the result, and then it belongs to the run's identity (its
`signature`); hardware, tracking, names and places are not science. Units: `steps` are optimizer steps, `tokens` are
target tokens over all micro-batches and ranks, losses are nats per token. Sizes keep the names of GPT-2 and nanoGPT.
"""

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from nanogpt.schema import Section, knob, refuse

MICRO_BATCH_TOKENS = 16_384  # what a micro-batch holds at most when hardware.micro_batch_size is null


def file_name(text: str | None) -> str | None:
    """Letters, digits, dot, dash and underscore, so a name can never leave its folder or look like an option."""
    if text is None or (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) and not text.endswith(".")):
        return text
    raise PydanticCustomError(
        "file_name", "letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"
    )


Name = Annotated[str, AfterValidator(file_name)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class ModelConfig(Section):
    """The network. The defaults are GPT-2 small."""

    name: Name = knob("custom", "label, the first half of a run's default name", science=False)
    n_layer: int = knob(12, "transformer blocks", ge=1, le=1000)
    n_head: int = knob(12, "attention heads, a divisor of n_embd", ge=1, le=1024)
    n_embd: int = knob(768, "width of the residual stream, channels", ge=1, le=65_536)
    block_size: int = knob(1024, "context length, tokens", ge=1, le=1_048_576)
    vocab_size: int | None = knob(None, "token ids; null takes the tokenizer's", ge=2, le=2**31)
    vocab_multiple: int = knob(
        1, "pads the embedding rows to a multiple of this; no padded id is ever predicted", ge=1, le=65_536
    )
    dropout: Share = knob(0.0, "probability of zeroing an activation in training")
    bias: bool = knob(True, "biases in linear layers and layer norms")
    activation: Literal["gelu", "gelu_tanh"] = knob("gelu_tanh", "exact erf form, or the tanh form of OpenAI's GPT-2")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            below = max(h for h in range(1, self.n_head) if self.n_embd % h == 0)
            above = [h for h in range(self.n_head, self.n_embd + 1) if self.n_embd % h == 0][:1]
            why = f"must divide model.n_embd={self.n_embd}; nearest {', '.join(map(str, [below, *above]))}"
            raise refuse("model.n_head", self.n_head, why)
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding. Needs `vocab_size`, which `with_vocab` fills in from the data."""
        assert self.vocab_size is not None
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """This model with the tokenizer's vocabulary size where none was asked for."""
        return self if self.vocab_size is not None else self.model_copy(update={"vocab_size": vocab_size})


class DataConfig(Section):
    """Where the text comes from and how it becomes tokens."""

    name: Name = knob("custom", "label, also the first part of the prepared folder's name", science=False)
    corpus: Literal["pystdlib", "shakespeare", "hub", "text"] = knob(
        "pystdlib", "kind of source, see nanogpt/data/corpora.py"
    )
    source: str | None = knob(
        None, "local files to read instead of downloading: a file, a folder, a glob, or a folder of .bin token files"
    )
    hub: str | None = knob(None, "corpus=hub: data set id on the Hugging Face hub")
    hub_config: str | None = knob(None, "corpus=hub: configuration of that data set")
    text_column: str = knob("text", "corpus=hub, parquet and jsonl: the column that holds the text", min_length=1)
    tokenizer: Literal["char", "byte", "bpe", "gpt2"] = knob("char", "bpe is trained on the corpus, gpt2 is OpenAI's")
    vocab_size: int | None = knob(None, "tokenizer=bpe: size of the trained vocabulary", ge=257, le=1_000_000)
    val_fraction: float = knob(0.05, "share of the text held out for validation", gt=0, lt=1)
    order: Literal["permutation", "random"] = knob(
        "permutation", "epochs without replacement, or random crops with replacement as nanoGPT"
    )
    dir: str = knob("data", "folder that prepared data sets live in", science=False, min_length=1)
    workers: int | None = knob(None, "processes that tokenise; null: one per core", science=False, ge=1, le=1024)
    verify: Literal["auto", "full", "size"] = knob(
        "auto", "how shards are checked before training; auto hashes them up to 2 GB", science=False
    )

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise refuse("data.vocab_size", None, "data.tokenizer=bpe needs a size, e.g. data.vocab_size=1024")
        if self.tokenizer != "bpe" and self.vocab_size is not None:
            raise refuse("data.vocab_size", self.vocab_size, f"data.tokenizer={self.tokenizer} has a fixed vocabulary")
        if self.corpus == "text" and self.source is None:
            raise refuse("data.source", None, "data=text needs your files, e.g. data.source='notes/*.txt'")
        if self.corpus == "hub" and self.hub is None and self.source is None:
            raise refuse("data.hub", None, "needs a data set id, or data.source=FILES")
        return self


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019): decay on matrices, none on vectors."""

    name: Literal["adamw"] = knob("adamw", "update rule")
    lr: float = knob(6e-4, "peak learning rate", gt=0, le=10, allow_inf_nan=False)
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = knob((0.9, 0.95), "decay of the two moments")
    eps: float = knob(1e-8, "added to the root of the second moment", gt=0, le=1, allow_inf_nan=False)
    weight_decay: float = knob(0.1, "decoupled, per unit of learning rate", ge=0, le=10, allow_inf_nan=False)
    grad_clip: float = knob(1.0, "largest global gradient norm; 0 turns clipping off", ge=0, allow_inf_nan=False)


class ScheduleConfig(Section):
    """Learning rate as a function of the step alone."""

    name: Literal["cosine", "linear", "constant", "wsd"] = knob("cosine", "shape after warm-up")
    warmup_steps: int = knob(0, "steps of linear warm-up", ge=0, le=2**53)
    decay_steps: Count | None = knob(None, "step at which the lowest rate is reached; null: the last")
    decay_fraction: float = knob(0.2, "wsd: share of the steps, at the end, in which the rate falls", gt=0, le=1)
    min_lr_ratio: float = knob(0.1, "lowest learning rate as a share of optimizer.lr", ge=0, le=1)


class TrainingConfig(Section):
    """How much to train, on which batches. Exactly one of steps, tokens and tokens_per_param is set."""

    batch_tokens: int = knob(
        491_520, "tokens per optimizer step over all ranks, a multiple of model.block_size", ge=1, le=2**40
    )
    steps: int | None = knob(None, "horizon in optimizer steps", ge=0, le=2**53)
    tokens: Count | None = knob(None, "horizon in tokens, rounded up to whole steps")
    tokens_per_param: float | None = knob(None, "horizon in tokens per parameter; 20 is Chinchilla's", gt=0, le=1e6)
    seed: int = knob(1337, "of initialisation, data order and dropout", ge=0, lt=2**63)

    @model_validator(mode="after")
    def _one_horizon(self) -> Self:
        names = ("steps", "tokens", "tokens_per_param")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            why = (
                "give exactly one of training.steps, training.tokens, training.tokens_per_param; set the others to null"
            )
            raise refuse("training." + (given[-1] if given else "steps"), given and getattr(self, given[-1]), why)
        return self


class EvalConfig(Section):
    """Evaluation on windows that never change."""

    every: Count = knob(1000, "steps between evaluations; the last step is always evaluated")
    tokens: Count | None = knob(
        None, "tokens of each split, in windows spread over it; null: the whole validation split"
    )
    train: bool = knob(True, "evaluate as many tokens of the training split too")


class HardwareConfig(Section):
    """The machine. Nothing here changes the data or the updates: the loss curve is the same up to rounding.

    With dropout the masks are drawn per micro-batch, so another micro_batch_size draws other ones.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto", "of matrix products; auto: bf16 on GPU, else fp32"
    )
    micro_batch_size: Count | None = knob(
        None, "sequences per forward pass; null: the most that divide the batch within 16,384 tokens"
    )
    compile: bool = knob(False, "torch.compile the model")
    threads: int | None = knob(None, "CPU threads; null: torch's choice", ge=1, le=1024)


class TrackingConfig(Section):
    """What is written and shown while training."""

    name: Literal["local"] = knob("local", "metrics.jsonl, log, plots and samples in the run directory")
    log_every: Count = knob(10, "steps between metrics rows")
    sample_tokens: int = knob(200, "length of the sample written at each evaluation; 0: none", ge=0, le=100_000)


class CheckpointConfig(Section):
    """When the state is saved: at these steps, at each best evaluation, on a stop signal and at the end."""

    every: Count = knob(1000, "steps between checkpoints")
    keep: int = knob(2, "newest checkpoints kept, besides the best one", ge=2, le=1000)


class TrainConfig(Section):
    """One training run."""

    name: Name | None = knob(None, "of the run directory; null: <model>-<data>", science=False)
    runs_dir: str = knob("runs", "folder of all run directories", science=False, min_length=1)
    fresh: bool = knob(False, "start another attempt beside the run that is already there", science=False)
    init_from: Literal["scratch"] = knob("scratch", "weights to start from")
    model: ModelConfig = knob(ModelConfig(), "the network")
    data: DataConfig = knob(DataConfig(), "text and tokens")
    optimizer: OptimizerConfig = knob(OptimizerConfig(), "update rule")
    schedule: ScheduleConfig = knob(ScheduleConfig(), "learning rate over steps")
    training: TrainingConfig = knob(..., "batch and horizon")
    eval: EvalConfig = knob(EvalConfig(), "validation")
    hardware: HardwareConfig = knob(HardwareConfig(), "machine", science=False)
    tracking: TrackingConfig = knob(TrackingConfig(), "records", science=False)
    checkpoint: CheckpointConfig = knob(CheckpointConfig(), "saving", science=False)

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        batch, block = self.training.batch_tokens, self.model.block_size
        if batch % block:
            nearest = sorted({max(block, batch // block * block), -(-batch // block) * block})
            why = f"must be a multiple of model.block_size={block}; nearest {', '.join(map(str, nearest))}"
            raise refuse("training.batch_tokens", batch, why)
        micro = self.hardware.micro_batch_size
        if micro and self.batch_sequences % micro:
            root = range(1, math.isqrt(self.batch_sequences) + 1)
            small = [n for n in root if self.batch_sequences % n == 0]
            fits = {*small, *(self.batch_sequences // n for n in small)}
            nearest = sorted(sorted(fits, key=lambda n: (abs(n - micro), n))[:2])
            why = (
                f"must divide the {self.batch_sequences} sequences of training.batch_tokens={batch}; "
                f"nearest {', '.join(map(str, nearest))}"
            )
            raise refuse("hardware.micro_batch_size", micro, why)
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.training.tokens_per_param is None:  # else the horizon needs the parameter count; see check_horizon
            check_horizon(self, self.steps(0))
        return self

    @property
    def batch_sequences(self) -> int:
        """Sequences per optimizer step, over all micro-batches and ranks."""
        return self.training.batch_tokens // self.model.block_size

    @property
    def micro_batch_size(self) -> int:
        """Sequences per forward pass."""
        if self.hardware.micro_batch_size:
            return self.hardware.micro_batch_size
        most = max(1, MICRO_BATCH_TOKENS // self.model.block_size)
        return max(n for n in range(1, min(most, self.batch_sequences) + 1) if self.batch_sequences % n == 0)

    @property
    def grad_accum(self) -> int:
        """Micro-batches per optimizer step."""
        return self.batch_sequences // self.micro_batch_size

    def steps(self, n_params: int) -> int:
        """The horizon in optimizer steps, for a model of `n_params` parameters (used by tokens_per_param only)."""
        training = self.training
        if training.steps is not None:
            return training.steps
        tokens = training.tokens or math.ceil((training.tokens_per_param or 0) * n_params)
        return -(-tokens // training.batch_tokens)

    @property
    def run_name(self) -> str:
        """First part of the run directory's name."""
        return self.name or f"{self.model.name}-{self.data.name}"


def check_horizon(config: TrainConfig, steps: int) -> None:
    """Refuse a schedule that is longer than the run. Raises PydanticCustomError."""
    schedule = config.schedule
    end = steps if schedule.decay_steps is None else schedule.decay_steps
    if schedule.warmup_steps > end > 0:
        key = "the run's length in steps" if schedule.decay_steps is None else "schedule.decay_steps"
        raise refuse("schedule.warmup_steps", schedule.warmup_steps, f"is above {key}={end}")


class SampleConfig(Section):
    """Text from a trained model."""

    run: str | None = knob(None, "run directory; null: the latest under runs_dir")
    runs_dir: str = knob("runs", "folder of all run directories")
    checkpoint: Literal["best", "latest"] = knob("best", "which checkpoint of the run")
    prompt: str = knob("", "text to continue; empty: the start of a document", literal=True)
    num_samples: int = knob(1, "samples, one after the other", ge=1, le=100_000)
    max_new_tokens: int = knob(500, "tokens to generate per sample", ge=0, le=10_000_000)
    temperature: float = knob(0.8, "divides the logits; 0 is greedy", ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = knob(None, "keep the k likeliest tokens; null: all", ge=1, le=2**31)
    top_p: float = knob(1.0, "keep the likeliest tokens that together reach this probability", gt=0, le=1)
    seed: int = knob(1337, "of the draws; sample i uses (seed, i)", ge=0, lt=2**63)
    stream: bool = knob(True, "show every token as it is drawn")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = knob(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )


class PrepareConfig(Section):
    """Tokenise a data set before training on it."""

    data: DataConfig = knob(DataConfig(), "text and tokens")
    overwrite: bool = knob(False, "prepare again, replacing what is there")


class BenchSettings(Section):
    """How long to measure."""

    warmup: int = knob(5, "training steps before the clock starts", ge=1, le=10_000)
    steps: int = knob(20, "training steps that are timed", ge=1, le=100_000)
    startup: bool = knob(True, "time the commands from process start too")
    out: str | None = knob(None, "Markdown file to append the result to, e.g. docs/benchmarks.md")


class BenchConfig(TrainConfig):
    """A training run whose step is timed instead of trained."""

    bench: BenchSettings = knob(BenchSettings(), "how long to measure")
