"""Device, ranks, precision and kernels. None of these keys changes data, dropout or updates."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.types import Count
from nanogpt.schema import ConfigModel, field_error, free, guarded

Precision = Literal["fp32", "bf16", "fp16"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Strategy = Literal["ddp", "fsdp"]
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
Gpu = Literal[  # nanogpt/estimates/gpu_specs.py has what they can
    "gb300",
    "gb200",
    "b300",
    "b200",
    "gh200",
    "h200",
    "h200_nvl",
    "h100",
    "h100_nvl",
    "h100_pcie",
    "a100_80gb",
    "a100_40gb",
    "a800_80gb",
    "l40s",
    "l4",
    "a10",
    "a10g",
    "a40",
    "rtx_a6000",
    "rtx_6000_ada",
    "rtx_5090",
    "rtx_4090",
    "rtx_3090",
    "v100_32gb",
    "v100_16gb",
    "t4",
]


class HardwareConfig(ConfigModel):
    """The machine. Nothing here changes data, dropout or updates: the loss curve is the same up to rounding."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")] = free(
        "auto", "auto, cpu, cuda, cuda:N or mps"
    )
    gpu: Gpu | None = free(
        None,
        "kind of GPU that device=cuda stands for; dry_run=true counts with it where there is none; null: not known",
    )
    devices: int | None = free(
        None, "ranks on this machine, one device each, started by this command; null: one, or torchrun's", ge=1, le=64
    )
    nodes: int | None = free(
        None, "machines, each with as many ranks, started by Slurm or torchrun; null: those that were", ge=1, le=10_000
    )
    strategy: Strategy = free(
        "ddp", "what each rank keeps of weights, gradients and moments; ddp: all, fsdp: its part, for what doesn't fit"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = guarded(
        "auto",
        "of matrix products; auto: on CUDA bf16, or fp16 where that is missing, else fp32, see tf32",
        earlier="auto",
    )
    tf32: bool = guarded(
        True,
        "on CUDA, round the factors of products in fp32 to TF32, which has fp16's mantissa; false: slower",
        earlier=True,
    )
    fp8: bool = guarded(
        False,
        "8-bit floats for the blocks' matrix products in training, by torchao; needs compile, bf16, a recent GPU",
        earlier=False,
    )
    micro_batch_size: Count | Literal["auto"] | None = free(
        None,
        "sequences per forward pass; null: of up to 16,384 tokens; auto: on GPUs the most that fit, of up to 65,536",
    )
    compile: bool | Literal["auto"] = free(
        "auto", "torch.compile the model; auto: on CUDA where that can work, and where fp8 or compile_mode needs it"
    )
    compile_mode: CompileMode = free(
        "default",
        "how to compile; reduce-overhead: CUDA graphs; max-autotune: try kernels and take the fastest",
    )
    attention: Attention = free(
        "auto",
        "kernel tried first; auto: torch's choice, on Hopper and Blackwell cudnn; what it can't do goes to others",
    )
    activation_checkpointing: bool = free(
        False,
        "keep only each block's input and compute the rest again in the backward pass: less memory, slower",
        was="recompute",
    )
    threads: int | None = free(
        None,
        "CPU threads of a rank; null: OMP_NUM_THREADS, else its share of the physical cores allowed to it",
        ge=1,
        le=1024,
    )
    deterministic: bool = free(False, "kernels that give the same bits every time; on GPUs slower, CPUs are so anyway")
    timeout: float = free(
        120.0,
        "seconds without progress, or compiling, after which a rank gives up on the others; at first five times that",
        ge=1,
        le=1e6,
    )

    @property
    def must_compile(self) -> bool:
        """Return whether the model must be compiled: it was asked for, or another key needs it."""
        return self.compile is True or (self.compile == "auto" and (self.fp8 or self.compile_mode != "default"))

    def keys_without_effect(self) -> set[str]:
        """The precision that the device has anyway adds nothing: hardware=cpu and hardware=auto are the same run."""
        here = self.device in ("cpu", "mps")
        usual = "bf16" if self.device.startswith("cuda") else "fp32" if here else None
        return ({"precision"} if self.precision == usual else set[str]()) | ({"tf32"} if here else set[str]())

    @model_validator(mode="after")
    def _mode_of_compile(self) -> Self:
        if self.compile_mode != "default" and self.compile is False:
            raise field_error(
                "hardware.compile_mode", self.compile_mode, "is a way of compiling; hardware.compile=true too"
            )
        return self

    @model_validator(mode="after")
    def _what_sharding_excludes(self) -> Self:
        if self.strategy == "ddp":
            return self
        for key, value, other in (
            ("fp8", self.fp8, "false"),
            ("precision", self.precision == "fp16", "bf16, fp32 or auto"),
            ("compile_mode", self.compile_mode != "default", "default"),
        ):
            if value:
                shown = str(getattr(self, key)).lower()
                why = f"can't be with hardware.{key}={shown}; it needs {other} there, or hardware.strategy=ddp"
                raise field_error("hardware.strategy", "fsdp", why)
        if self.devices == 1 and self.nodes in (None, 1):
            raise field_error("hardware.strategy", "fsdp", "needs two ranks or more, but hardware.devices=1")
        return self

    @model_validator(mode="after")
    def _what_fp8_needs(self) -> Self:
        if self.fp8 and self.precision not in ("auto", "bf16"):
            raise field_error("hardware.fp8", "true", f"needs hardware.precision=bf16 or auto, not {self.precision}")
        if self.fp8 and self.compile is False:
            raise field_error("hardware.fp8", "true", "is slow without hardware.compile=true; give that too")
        return self
