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
        "GPU model that dry_run=true assumes for device=cuda on a machine without one; null: unknown",
    )
    devices: int | None = free(
        None,
        "ranks per node, one device each, started by this command; null: one, or what torchrun started",
        ge=1,
        le=64,
    )
    nodes: int | None = free(
        None, "nodes; must match what Slurm or torchrun started; null: whatever was started", ge=1, le=10_000
    )
    strategy: Strategy = free(
        "ddp", "ddp: every rank holds all weights, gradients and moments; fsdp: they are sharded over the ranks"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = guarded(
        "auto",
        "precision of matrix products; auto: bf16 on CUDA (fp16 on GPUs without bf16), fp32 elsewhere",
        earlier="auto",
    )
    tf32: bool = guarded(
        True,
        "on CUDA, use TF32 in fp32 matrix products; false: full fp32, slower",
        earlier=True,
    )
    fp8: bool = guarded(
        False,
        "train the blocks' linear layers in float8 (torchao); needs compile, bf16 and a recent GPU",
        earlier=False,
    )
    micro_batch_size: Count | Literal["auto"] | None = free(
        None,
        "sequences per forward pass; null: up to 16,384 tokens; auto: on a GPU, as many as fit, up to 65,536 tokens",
    )
    compile: bool | Literal["auto"] = free(
        "auto", "torch.compile the model; auto: on CUDA if it is supported, or if fp8 or compile_mode needs it"
    )
    compile_mode: CompileMode = free(
        "default",
        "mode of torch.compile; reduce-overhead: CUDA graphs; max-autotune: benchmark kernels, use the fastest",
    )
    attention: Attention = free(
        "auto",
        "attention kernel to prefer, with fallback to others; auto: cudnn on Hopper and Blackwell, else torch's choice",
    )
    activation_checkpointing: bool = free(
        False,
        "store only each block's input and recompute the rest in the backward pass: less memory, slower",
        was="recompute",
    )
    threads: int | None = free(
        None,
        "CPU threads per rank; null: OMP_NUM_THREADS, else an equal share of the available physical cores",
        ge=1,
        le=1024,
    )
    deterministic: bool = free(False, "use deterministic kernels; slower on GPUs, no difference on CPUs")
    timeout: float = free(
        120.0,
        "seconds without progress or compilation after which a rank stops waiting for others; 5 times that at first",
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
