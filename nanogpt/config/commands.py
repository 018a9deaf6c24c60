"""What the other commands take."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from nanogpt.config.data import DataConfig
from nanogpt.config.evaluation import EvaluationConfig
from nanogpt.config.hardware import Attention, Gpu
from nanogpt.config.tracking import TrackerNames
from nanogpt.config.train import TrainConfig
from nanogpt.config.types import Count, Name, split_list
from nanogpt.schema import ConfigModel, field_error, free, iter_values


class TrainedConfig(ConfigModel):
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
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")] = free(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )


class TaskConfig(ConfigModel):
    """How a prompt is put to the model, and where its answer ends."""

    name: Name = free("custom", "label")
    template: str = free("{prompt}", "what the model sees; {prompt} is replaced, \\n is a newline", literal=True)
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = free(
        (), "texts that end the answer and are not shown"
    )
    sentences: int | None = free(None, "end the answer after this many sentences; null: no limit", ge=1, le=1000)
    until_end: bool = free(True, "end the answer at the model's end-of-document token")

    @model_validator(mode="after")
    def _template_has_a_place(self) -> Self:
        if "{prompt}" not in self.template:
            raise field_error("task.template", self.template, "must contain {prompt}")
        return self


class SampleConfig(TrainedConfig):
    """Text from a trained model."""

    task: TaskConfig = free(TaskConfig(), "how the prompt is put")
    prompt: str = free("", "text to continue, or FILE:path; empty: the start of a document", literal=True)
    prompts: str | None = free(None, 'file of many prompts: .jsonl with "prompt", else one a line')
    num_samples: int = free(1, "texts for each prompt", ge=1, le=100_000)
    batch_size: int = free(
        1, "texts generated in parallel; with more than one, a text is printed when it is complete", ge=1, le=4096
    )
    max_new_tokens: int = free(500, "tokens to generate per text at most", ge=0, le=10_000_000)
    temperature: float = free(0.8, "sampling temperature; 0: greedy decoding", ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = free(None, "sample from the k most likely tokens; null: all", ge=1, le=2**31)
    top_p: float = free(
        1.0, "nucleus sampling: sample from the most likely tokens whose probabilities reach this sum", gt=0, le=1
    )
    min_p: float = free(0.0, "drop tokens below this fraction of the highest probability", ge=0, le=1)
    repetition_penalty: float = free(1.0, "values above 1 make tokens that already occurred less likely", gt=0, le=100)
    stop: str | None = free(None, "text that ends the answer; \\n is a newline", literal=True, min_length=1)
    special_tokens: bool = free(
        False, "special tokens such as <|endoftext|> in a prompt are their ids; else they are plain text"
    )
    truncate: bool = free(False, "keep the end of a prompt longer than model.block_size; false: an error")
    precision: Literal["fp32", "bf16"] = free(
        "fp32", "precision of the weights; bf16 halves the memory traffic per token"
    )
    attention: Attention = free("auto", "attention kernel to prefer; auto: flash, then efficient on CUDA")
    seed: int = free(1337, "random seed; text i uses (seed, i)", ge=0, lt=2**63)
    stream: bool = free(True, "print every token as it is generated")
    quiet: bool = free(False, "leave out the line on standard error that names the model and the settings")
    interactive: bool = free(False, "read prompts from the terminal, one after the other")
    out: str | None = free(None, "append one JSON line per text to this file instead of printing it; null: print")


class EvaluateConfig(TrainedConfig):
    """Numbers about a trained model."""

    data: DataConfig = free(DataConfig(), "eval=loss: the data set, data=NAME; null: the one the run was trained on")
    eval: EvaluationConfig = free(EvaluationConfig(), "tasks and their documents")
    devices: int | None = free(
        None, "ranks, one device each, started by this command; null: one, or what torchrun started", ge=1, le=64
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = free(
        "auto", "precision of matrix products; auto: bf16 on CUDA (fp16 on GPUs without bf16), fp32 elsewhere"
    )
    tf32: bool = free(True, "on CUDA, use TF32 in fp32 matrix products; false: full fp32, slower")
    attention: Attention = free("auto", "attention kernel to prefer; auto: flash, then efficient on CUDA")
    batch_tokens: Count | None = free(None, "tokens per forward pass; null: 2,048 on the CPU, else 32,768")
    out: str | None = free(
        None, "JSON lines file the results are added to; null: the run directory's evaluations.jsonl, if there is a run"
    )

    @model_validator(mode="after")
    def _data_is_chosen(self) -> Self:
        if not self.has_data:
            usual = dict(iter_values(DataConfig(), "data."))
            for key, value in iter_values(self.data, "data."):
                if value != usual[key]:
                    raise field_error(key, value, "of which data set? choose one too, e.g. data=text")
            if self.init_from is not None and set(self.eval.tasks) == {"loss"}:
                raise field_error("data", None, "eval=loss with init_from needs a data set, e.g. data=openwebtext")
        return self

    @property
    def has_data(self) -> bool:
        """Whether a data set was chosen: every one has a name."""
        return self.data.name != DataConfig().name


class ExportConfig(TrainedConfig):
    """A trained model for other programs."""

    format: Literal["hf", "nanogpt"] = free("hf", "transformers' folder, or nanoGPT's ckpt.pt")
    out: str | None = free(
        None, "folder to write; null: a folder named as the format, in the run directory", min_length=1
    )
    overwrite: bool = free(False, "replace an earlier export whose files are unchanged; no other folder is replaced")
    verify: bool = free(
        True, "compare the logits of the written model with the original's, by transformers if installed"
    )


class SyncConfig(ConfigModel):
    """Show trackers what they lack of runs that were trained."""

    runs: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(split_list)] = free(
        (), "run directories; none: the latest under runs_dir"
    )
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)
    trackers: Annotated[TrackerNames, Field(min_length=1), BeforeValidator(split_list)] = free(
        ("wandb",), "which trackers", was="mirrors"
    )
    project: Name | None = free(None, "null: the run's own tracking.project")
    entity: Name | None = free(None, "null: the run's own tracking.entity")
    timeout: float = free(60.0, "seconds that a tracker may take to start, and to finish", ge=1, le=86_400)


CheckName = Literal[
    "python",
    "torch",
    "device",
    "compile",
    "disk",
    "shared_memory",
    "slurm",
    "wandb",
    "data",
    "tokenizer",
    "logits",
    "cache",
    "accumulation",
    "ranks",
    "resume",
]


class DoctorConfig(ConfigModel):
    """Checks of the machine, and of what must hold of every training."""

    checks: Annotated[tuple[CheckName, ...], Field(strict=False), BeforeValidator(split_list)] = free(
        (), "only these; none: all"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")] = free(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )
    runs_dir: str = free("runs", "folder of run directories, whose disk is tried", min_length=1)
    data_dir: str = free("data", "folder that prepared data sets live in", min_length=1)
    gpu: bool = free(
        False, "instead check a GPU: invariants, benchmarks and the tests marked gpu; on device=cpu a rehearsal"
    )
    limit_s: float = free(
        480.0, "gpu=true: seconds for the whole check; the limit of each part grows with it", ge=1, le=86_400
    )
    against: str | None = free(
        None, "gpu=true: checkout of nanoGPT whose training step is timed in turn; null: none", literal=True
    )
    out: str = free("gpu-check", "gpu=true: folder for gpu-check.json and gpu-check.md", min_length=1)

    @model_validator(mode="after")
    def _what_the_gpu_check_takes(self) -> Self:
        if self.gpu and self.checks:
            raise field_error(
                "checks", f"[{','.join(self.checks)}]", "are not chosen with gpu=true, which makes its own"
            )
        if not self.gpu and self.against is not None:
            raise field_error("against", self.against, "is compared with in the check of a GPU; give gpu=true too")
        return self


class PrepareConfig(ConfigModel):
    """Tokenise a data set before training on it."""

    data: DataConfig = free(DataConfig(), "text and tokens")
    overwrite: bool = free(False, "prepare again, replacing what is there")


class SizingSettings(ConfigModel):
    """What is assumed of devices."""

    gpu: Gpu | None = free(None, "only this kind of GPU; null: all that are known")
    mfu: float = free(0.4, "share of a GPU's peak that training is assumed to reach", gt=0, le=1)
    price: float | None = free(None, "dollars for an hour of one sizing.gpu; null: no costs are shown", gt=0, le=1e6)

    @model_validator(mode="after")
    def _price_of_one_kind(self) -> Self:
        if self.price is not None and self.gpu is None:
            raise field_error("sizing.price", self.price, "is of one kind of GPU; name it, e.g. sizing.gpu=h100")
        return self


class SizingConfig(TrainConfig):
    """A training run that is only calculated: parameters, FLOPs, memory, time and cost on known GPUs."""

    sizing: SizingSettings = free(SizingSettings(), "assumptions")


class CoordinatesSettings(ConfigModel):
    """Which models are compared, and for how long."""

    widths: Annotated[tuple[Count, ...], Field(strict=False, min_length=2)] = free(
        (64, 128, 256, 512), "model.n_embd of each, multiples of the size of a head"
    )
    steps: Count = free(5, "optimizer steps, each on the same random tokens")
    sequences: Count = free(8, "sequences of a step")
    out: str = free("coordinates.png", "the picture", min_length=1)


class CoordinatesConfig(TrainConfig):
    """A recipe at several widths, a few steps each: how far activations move."""

    coordinates: CoordinatesSettings = free(CoordinatesSettings(), "the comparison")

    @model_validator(mode="after")
    def _heads_of_one_size(self) -> Self:
        size = self.model.head_size
        for width in self.coordinates.widths:
            if width % size:
                why = f"must be multiples of {size}, the size of a head (model.n_embd / model.n_head)"
                raise field_error("coordinates.widths", width, why)
        return self


class LawConfig(ConfigModel):
    """Loss in nats per token of N parameters after D tokens: E + A / N^alpha + B / D^beta. The defaults are those of
    Hoffmann et al. 2022, approach 3.
    """

    E: float = free(1.69, "loss that no model goes below", ge=0, le=100)
    A: float = free(406.4, "what few parameters cost", gt=0, le=1e100)
    B: float = free(410.7, "what few tokens cost", gt=0, le=1e100)
    alpha: float = free(0.34, "exponent of the parameters", gt=0, le=10)
    beta: float = free(0.28, "exponent of the tokens", gt=0, le=10)


class ScalingConfig(ConfigModel):
    """How to spend a budget: the published laws, or those of one's own runs."""

    budget: float | None = free(
        None, "FLOPs to spend; with runs: to predict, null then is 10 times the largest", gt=0, le=1e40
    )
    n_params: float | None = free(None, "parameters: the tokens and FLOPs they are the best size for", ge=1, le=1e20)
    runs: str | None = free(None, "finished run directories to fit instead, a glob, e.g. 'runs/isoflop*'", min_length=1)
    out: str = free(".", "runs: folder for scaling.json and scaling.png", min_length=1)
    bootstrap: int = free(200, "runs: resamples that give the 90 % intervals", ge=20, le=100_000)
    seed: int = free(1337, "runs: of the resamples", ge=0, lt=2**63)
    law: LawConfig = free(LawConfig(), "constants of the loss")

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if self.n_params is not None and (self.budget is not None or self.runs is not None):
            raise field_error("n_params", self.n_params, "is a question of its own; leave out budget and runs")
        return self
