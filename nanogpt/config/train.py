"""Keys of train.py, and checks across their groups."""

import math

from pydantic import model_validator
from typing_extensions import Self

from nanogpt.config.checkpoint import CheckpointConfig, ResumeConfig
from nanogpt.config.cost import CostConfig
from nanogpt.config.data import DataConfig
from nanogpt.config.evaluation import EvalConfig
from nanogpt.config.hardware import HardwareConfig
from nanogpt.config.model import ModelConfig
from nanogpt.config.optimizer import OPTIMIZERS, OptimizerConfig, ParametrizationConfig
from nanogpt.config.schedule import ScheduleConfig
from nanogpt.config.tracking import TrackingConfig
from nanogpt.config.training import TrainingConfig
from nanogpt.config.types import Count, Name
from nanogpt.errors import hint, one_line
from nanogpt.fields import change_policy, fixed, free
from nanogpt.json_output import FORMAT_HELP, OutputFormat
from nanogpt.schema import ConfigModel, field_error, iter_fields

MICRO_BATCH_TOKENS = 16_384  # most tokens of a micro-batch if hardware.micro_batch_size is null
AUTO_TOKENS = 65_536  # most if it is `auto`; far fewer already keep a GPU busy


class TrainConfig(ConfigModel):
    """One training run."""

    name: Name | None = free(None, "first part of the run directory's name; null: <model>-<data>")
    runs_dir: str = free("runs", "folder of all run directories", min_length=1)
    new_attempt: bool = free(False, "start a new attempt of the run although one exists", was="fresh")
    attempt: Count | None = free(
        None, "number of the attempt to continue or start: an existing one or the next; null: the latest"
    )
    dry_run: bool = free(
        False, "only print the steps, FLOPs, memory and time that training would take; write nothing", was="plan"
    )
    format: OutputFormat = free("text", f"output of dry_run=true; {FORMAT_HELP}")
    stop_at_fraction: float | None = free(
        None,
        "evaluate, save and stop at this fraction of the steps; the LR schedule still covers all; null: run to the end",
        gt=0,
        le=1,
        was="pause_at",
    )
    replay: str | None = free(
        None, "incident directory: repeat only its step and report which values are not finite; null: train"
    )
    init_from: str = fixed(
        "scratch",
        "weights to start from: gpt2, gpt2_medium, …, a Hugging Face folder, nanoGPT's ckpt.pt, a run directory",
        min_length=1,
    )
    init_from_sha256: str | None = fixed(
        None,
        "SHA-256 of the files at init_from's path; null: computed at the start",
        pattern=r"^[0-9a-f]{64}$",
        allowed="64 hexadecimal digits",
        earlier=None,
    )
    model: ModelConfig = fixed(ModelConfig(), "the network")
    data: DataConfig = fixed(DataConfig(), "source text and tokenizer")
    optimizer: OptimizerConfig = fixed(OptimizerConfig(), "update rule")
    schedule: ScheduleConfig = fixed(ScheduleConfig(), "learning-rate schedule")
    parametrization: ParametrizationConfig = fixed(
        ParametrizationConfig(), "how initialization and learning rates scale with width"
    )
    training: TrainingConfig = fixed(..., "batch size, length and seed")
    eval: EvalConfig = fixed(EvalConfig(), "validation")
    hardware: HardwareConfig = free(HardwareConfig(), "device, ranks, precision")
    tracking: TrackingConfig = free(TrackingConfig(), "metrics and trackers")
    checkpoint: CheckpointConfig = free(CheckpointConfig(), "when to save checkpoints")
    resume: ResumeConfig = free(ResumeConfig(), "continue or fork another run")
    cost: CostConfig = free(CostConfig(), "prices of devices")

    def keys_without_effect(self) -> set[str]:
        """Return `init_from` where the digest is known: content identifies weights better than a name or path."""
        return {"init_from"} if self.init_from_sha256 is not None else set()

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        batch, block = self.training.batch_tokens, self.model.block_size
        if batch % block:
            nearest = sorted({max(block, batch // block * block), -(-batch // block) * block})
            why = f"must be a multiple of model.block_size={block}; nearest {', '.join(map(str, nearest))}"
            raise field_error("training.batch_tokens", batch, why)
        nodes, devices = self.hardware.nodes or 1, self.hardware.devices or 1
        self.check_ranks_divide_batch(
            nodes * devices, "hardware.devices" if nodes == 1 else "hardware.nodes x hardware.devices"
        )
        return self

    @model_validator(mode="after")
    def _check_mup_head(self) -> Self:
        if self.parametrization.name == "mup" and self.model.tie_weights:
            why = "needs model.tie_weights=false: the head and the embedding have different learning rates"
            raise field_error("parametrization.name", "mup", why)
        return self

    @model_validator(mode="after")
    def _check_shardable(self) -> Self:
        if self.hardware.strategy != "ddp" and not OPTIMIZERS[self.optimizer.name].shardable:
            why = f"optimizer={self.optimizer.name} needs whole matrices; give hardware.strategy=ddp"
            raise field_error("hardware.strategy", self.hardware.strategy, why)
        return self

    @model_validator(mode="after")
    def _check_resume(self) -> Self:
        changeable = {key for key, field in iter_fields(TrainConfig) if change_policy(field) == "guarded"} | {"data"}
        if self.new_attempt and self.resume.run is not None:
            why = "continues a run, and new_attempt=true starts one; give one of them"
            raise field_error("resume.run", self.resume.run, why)
        if self.attempt is not None and self.new_attempt:
            why = "chooses an attempt, and new_attempt=true starts the next one; give one of them"
            raise field_error("attempt", self.attempt, why)
        for key in self.resume.allow_change:
            if key not in changeable:
                why = f"{one_line(key)} is not a guarded key{hint(key, changeable)}"
                raise field_error("resume.allow_change", f"[{key}]", why)
        return self

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.format == "json" and not self.prints_json:
            raise field_error("format", self.format, "is for train.py with dry_run=true, and for nanogpt sizing")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.training.steps is not None or self.training.tokens:  # else checked when the model's size is known
            check_warmup_fits(self, self.steps(0, 0.0))
        return self

    @property
    def prints_json(self) -> bool:
        """True if the command has a result that `format=json` can print."""
        return self.dry_run and type(self) is TrainConfig

    @property
    def batch_sequences(self) -> int:
        """Sequences per optimizer step, over all micro-batches and ranks."""
        return self.training.batch_tokens // self.model.block_size

    def check_ranks_divide_batch(self, world: int, key: str) -> None:
        """Raise PydanticCustomError unless `world` ranks, and their micro-batches, divide the batch."""
        batch = f"the {self.batch_sequences} sequences of training.batch_tokens={self.training.batch_tokens}"
        if self.batch_sequences % world:
            raise field_error(
                key, world, f"must divide {batch}; nearest {nearest_divisors(self.batch_sequences, world)}"
            )
        micro, share = self.hardware.micro_batch_size, self.batch_sequences // world
        if isinstance(micro, int) and share % micro:
            among = f", {share} on each of {world} ranks" if world > 1 else ""
            why = f"must divide {batch}{among}; nearest {nearest_divisors(share, micro)}"
            raise field_error("hardware.micro_batch_size", micro, why)

    def micro_batch_size(self, world: int = 1) -> int:
        """Return the sequences per forward pass of each of `world` ranks. `auto` that isn't resolved counts as null."""
        if isinstance(self.hardware.micro_batch_size, int):
            return self.hardware.micro_batch_size
        most, share = max(1, MICRO_BATCH_TOKENS // self.model.block_size), self.batch_sequences // world
        return max(n for n in range(1, min(most, share) + 1) if share % n == 0)

    def auto_micro_batch_sizes(self, world: int) -> list[int]:
        """Return the micro-batches among which `auto` chooses on each of `world` ranks, in order."""
        return auto_micro_batch_sizes(self.batch_sequences // world, self.model.block_size)

    def shards(self, world: int) -> int:
        """Return the number of shards of weights, gradients and moments on `world` ranks."""
        return {"ddp": 1, "fsdp": world}[self.hardware.strategy]

    def with_micro_batch_size(self, micro: int) -> Self:
        """Return this config with another micro-batch."""
        return self.model_copy(update={"hardware": self.hardware.model_copy(update={"micro_batch_size": micro})})

    def grad_accum(self, world: int = 1) -> int:
        """Return the micro-batches per optimizer step on each of `world` ranks."""
        return self.batch_sequences // world // self.micro_batch_size(world)

    def steps(self, n_params: int, flops_per_token: float) -> int:
        """Return the run's length in optimizer steps. The arguments matter for tokens_per_param and flops."""
        training = self.training
        if training.steps is not None:
            return training.steps
        if training.flops is not None:
            return math.ceil(training.flops / flops_per_token / training.batch_tokens)
        tokens = training.tokens or math.ceil((training.tokens_per_param or 0) * n_params)
        return -(-tokens // training.batch_tokens)

    def last_step(self, steps: int) -> int:
        """Return the step at which a run of `steps` ends, or stops by stop_at_fraction."""
        if self.stop_at_fraction is None:
            return steps
        return min(steps, max(1, math.ceil(round(self.stop_at_fraction * steps, 6))))

    def evaluates_at(self, step: int, steps: int) -> bool:
        """Return whether a run of `steps` is evaluated at `step`."""
        return self.eval.is_due(step, steps) or step == self.last_step(steps)

    @property
    def run_name(self) -> str:
        """First part of the run directory's name."""
        return self.name or f"{self.model.name}-{self.data.name}"


def nearest_divisors(number: int, wanted: int) -> str:
    """Return the two divisors of `number` nearest to `wanted`, as text."""
    nearest = sorted(sorted(divisors(number), key=lambda n: (abs(n - wanted), n))[:2])
    return ", ".join(map(str, nearest))


def auto_micro_batch_sizes(share: int, block_size: int) -> list[int]:
    """Return the micro-batches among which `auto` chooses for a rank with `share` sequences per step, in order."""
    most = max(1, AUTO_TOKENS // block_size)
    return [n for n in divisors(share) if n <= most]


def divisors(number: int) -> list[int]:
    """Return all divisors, in order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def check_warmup_fits(config: TrainConfig, steps: int) -> None:
    """Raise PydanticCustomError if the warm-up is longer than the run or the decay."""
    schedule = config.schedule
    end = steps if schedule.decay_steps is None else schedule.decay_steps
    if schedule.warmup_steps > end > 0:
        key = "the run's length in steps" if schedule.decay_steps is None else "schedule.decay_steps"
        why = f"is above {key}={end}; e.g. schedule.warmup_steps={end // 10}"
        raise field_error("schedule.warmup_steps", schedule.warmup_steps, why)
