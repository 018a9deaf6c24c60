"""Device, ranks, precision and kernels. None of these keys changes data, dropout or updates."""

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from nanogpt.config.types import DEVICES, Count, Device
from nanogpt.fields import free, guarded
from nanogpt.schema import ConfigModel, field_error

Precision = Literal["fp32", "bf16", "fp16"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
Strategy = Literal["ddp", "fsdp"]
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
Gpu = Literal[  # their data sheets: nanogpt/estimates/gpu_specs.py
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

    device: Device = free("auto", "device; auto: a CUDA GPU if there is one, else the CPU", allowed=DEVICES)
    gpu: Gpu | None = free(
        None,
        "GPU model to assume when dry_run=true plans for device=cuda on a machine without a GPU; null: none",
    )
    devices: int | None = free(
        None,
        "ranks per node, one device each, started by this command; null: one, or as many as torchrun started",
        ge=1,
        le=64,
    )
    nodes: int | None = free(
        None,
        "number of nodes; must match what Slurm or torchrun started; null: as many as were started",
        ge=1,
        le=10_000,
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
        "sequences per forward pass; null: at most 16,384 tokens; auto: on a GPU what fits, at most 65,536 tokens",
    )
    compile: bool | Literal["auto"] = free(
        "auto", "compile the model with torch.compile; auto: on CUDA if supported, or if fp8 or compile_mode needs it"
    )
    compile_mode: CompileMode = free(
        "default",
        "mode of torch.compile; reduce-overhead: CUDA graphs; max-autotune: benchmark kernels, use the fastest",
    )
    attention: Attention = free(
        "auto",
        "preferred attention kernel; another runs where it cannot; auto: cudnn on Hopper and Blackwell, else torch's",
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
        "seconds without any progress after which a rank gives up on the others; 5 times that before the first step",
        ge=1,
        le=1e6,
    )

    @property
    def must_compile(self) -> bool:
        """True if the model must be compiled: by this key or because another one needs it."""
        return self.compile is True or (self.compile == "auto" and (self.fp8 or self.compile_mode != "default"))

    def keys_without_effect(self) -> set[str]:
        """Return `precision` where it is the device's default: hardware=cpu and hardware=auto are the same run."""
        here = self.device in ("cpu", "mps")
        usual = "bf16" if self.device.startswith("cuda") else "fp32" if here else None
        return ({"precision"} if self.precision == usual else set[str]()) | ({"tf32"} if here else set[str]())

    @model_validator(mode="after")
    def _check_compile_mode(self) -> Self:
        if self.compile_mode != "default" and self.compile is False:
            raise field_error("hardware.compile_mode", self.compile_mode, "needs hardware.compile=true")
        return self

    @model_validator(mode="after")
    def _check_fsdp(self) -> Self:
        if self.strategy == "ddp":
            return self
        for key, value, other in (
            ("fp8", self.fp8, "false"),
            ("precision", self.precision == "fp16", "bf16, fp32 or auto"),
            ("compile_mode", self.compile_mode != "default", "default"),
        ):
            if value:
                shown = str(getattr(self, key)).lower()
                why = f"is not possible with hardware.{key}={shown}; give {other} there, or hardware.strategy=ddp"
                raise field_error("hardware.strategy", "fsdp", why)
        if self.devices == 1 and self.nodes in (None, 1):
            raise field_error("hardware.strategy", "fsdp", "needs two ranks or more, but hardware.devices=1")
        return self

    @model_validator(mode="after")
    def _check_fp8(self) -> Self:
        if self.fp8 and self.precision not in ("auto", "bf16"):
            raise field_error("hardware.fp8", "true", f"needs hardware.precision=bf16 or auto, not {self.precision}")
        if self.fp8 and self.compile is False:
            raise field_error("hardware.fp8", "true", "is slow without hardware.compile=true; give that too")
        return self
