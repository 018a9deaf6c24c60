"""Checks of this machine: versions, device, compiler, disk, memory, cluster, trackers, data."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.cuda import nccl

from nanogpt.config import DoctorConfig, TrackingConfig
from nanogpt.console import format_command
from nanogpt.cuda_driver import explain_no_cuda
from nanogpt.data.dataset import open_prepared
from nanogpt.device import cpu_name, find_device, memory_bytes
from nanogpt.doctor.finding import Check, Finding
from nanogpt.errors import BadEnvironment, LabError, one_line
from nanogpt.formatting import format_count
from nanogpt.tokenizer import GPT2Tokenizer
from nanogpt.torch_compile import find_compile_problem, set_compile_cache
from nanogpt.tracking.run_metadata import wandb_mode

OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 9)
MIB, GIB = 2**20, 2**30
WRITTEN = 64 * MIB  # bytes that are written to measure the disk
SLOW_DISK, FEW_BYTES, LITTLE_SHARED = 50 * MIB, 10 * GIB, GIB  # values below these are noted
SHARED_MEMORY, MORE_SHARED_MEMORY = Path("/dev/shm"), "docker run --shm-size=8g, or --ipc=host"
HELLO = [15496, 11, 995]  # "Hello, world" in GPT-2's tokens


def check_python(_: DoctorConfig) -> Finding:
    """Check that Python is recent enough."""
    if sys.version_info < OLDEST_PYTHON:
        raise BadEnvironment(f"Python {platform.python_version()} is too old")
    return Finding("ok", f"{platform.python_version()}, {sys.executable}")


def check_torch(_: DoctorConfig) -> Finding:
    """Check that torch is recent enough, and built for this machine's GPU."""
    version = str(torch.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise BadEnvironment(f"torch {version} is too old")
    built = f"{version}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'for CPUs'}"
    if why := explain_no_cuda():
        return Finding("note", f"{built}; there is an NVIDIA driver, but this torch sees no GPU", why)
    return Finding("ok", built)


def check_device(config: DoctorConfig) -> Finding:
    """Check a product of matrices on the device; report its name, memory, bf16 and nccl."""
    found = find_device(config.device, "device")
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    wrong = float(((a.to(found) @ b.to(found)).cpu() - a.double() @ b.double()).abs().max())
    if not wrong < 0.5:  # products of 256 normal numbers, TF32 at worst
        raise BadEnvironment(f"{found}: a product of matrices is wrong by {wrong:.3g}")
    memory = memory_bytes(found)
    size = f", {memory / GIB:.0f} GiB" if memory else ""
    if found.type != "cuda":
        kind = "CPU" if found.type == "cpu" else "Apple GPU"
        return Finding("ok", f"{kind}: {cpu_name()}, {os.cpu_count()} cores{size}")
    version = ".".join(map(str, nccl.version())) if torch.distributed.is_nccl_available() else None
    gpus = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(found)}{size}"
    if version is None and torch.cuda.device_count() > 1:
        return Finding("note", f"{gpus}; no nccl", "several GPUs need a torch with nccl, as built for Linux")
    return Finding("ok", f"{gpus}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}; nccl {version or 'no'}")


def check_compile(config: DoctorConfig) -> Finding:
    """Check that torch.compile builds a kernel whose results are right."""
    found = find_device(config.device, "device")
    if missing := find_compile_problem(found):
        return Finding("note", f"torch.compile can't work on {found.type}", missing)
    set_compile_cache("auto")

    def curve(x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x).square().sum(-1)

    x, started = torch.randn(64, 128, device=found), time.monotonic()
    made = torch.compile(curve)(x)  # pyright: ignore[reportArgumentType]
    if not torch.allclose(made, curve(x), rtol=1e-3, atol=1e-3):
        raise BadEnvironment(f"{found}: torch.compile gives wrong numbers")
    return Finding("ok", f"torch.compile works on {found.type}: {time.monotonic() - started:.1f} s for a small kernel")


def check_disk(config: DoctorConfig) -> Finding:
    """Measure free space and write speed of the disk of runs_dir."""
    folder = nearest_folder(Path(config.runs_dir))
    free = shutil.disk_usage(folder).free
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".nanogpt-doctor-") as file:
        content, started = os.urandom(WRITTEN), time.monotonic()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        speed = WRITTEN / (time.monotonic() - started)
    what = f"{one_line(folder.resolve())}: {free / GIB:.0f} GiB free, writes {format_count(speed, 'G')}B/s"
    if free < FEW_BYTES:
        return Finding(
            "note", what, "a checkpoint takes 12 bytes per parameter, 1.5 GB for GPT-2 small: runs_dir=ANOTHER"
        )
    if speed < SLOW_DISK:
        return Finding("note", what, "checkpoints are saved slowly, in the background: a larger checkpoint.every")
    return Finding("ok", what)


def nearest_folder(path: Path) -> Path:
    """Return the folder, or the nearest existing one above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def check_shared_memory(_: DoctorConfig) -> Finding:
    """Check the free space in /dev/shm."""
    if not SHARED_MEMORY.is_dir():
        return Finding("ok", "no /dev/shm on this system")
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < LITTLE_SHARED:
        return Finding("note", f"/dev/shm: {free // MIB} MiB free", f"nccl may need more: {MORE_SHARED_MEMORY}")
    return Finding("ok", f"/dev/shm: {free / GIB:.0f} GiB free")


def check_slurm(_: DoctorConfig) -> Finding:
    """Check Slurm's commands."""
    found = [name for name in ("sbatch", "srun", "squeue", "scancel", "sacct") if shutil.which(name)]
    if "sbatch" not in found:
        return Finding("ok", "no Slurm; hydra/launcher=submitit_local runs sweep points in parallel")
    version = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=20)
    if version.returncode:
        raise BadEnvironment(f"sbatch --version: {one_line((version.stderr.strip() or 'fails').splitlines()[-1])}")
    what = f"{one_line(version.stdout.strip())}: {', '.join(found)}"
    if "sacct" not in found:
        return Finding("note", what, "without sacct, the end of a job is known from its run directory alone")
    return Finding("ok", what)


def check_wandb(_: DoctorConfig) -> Finding:
    """Check whether wandb finds an API key, without reading the key."""
    if find_spec("wandb") is None:
        return Finding("ok", "not installed; tracking=local works without it")
    login = "`wandb login`, before tracking=wandb"
    try:
        if (mode := wandb_mode(TrackingConfig())) != "online":
            return Finding("note", f"WANDB_MODE is {mode}: nothing is sent", "unset WANDB_MODE to send runs")
        return Finding("ok", "logged in") if has_wandb_key() else Finding("note", "installed, not logged in", login)
    except LabError as error:
        return Finding("note", str(error), "unset WANDB_MODE")
    except (Exception, SystemExit) as error:  # its message may contain an invalid key
        return Finding("note", f"wandb can't read its login ({type(error).__name__})", login)


def has_wandb_key() -> bool:
    """Return whether wandb finds an API key, and restore the environment variables that it changes."""
    from nanogpt.tracking.wandb import has_key

    before = dict(os.environ)
    try:
        return has_key()
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def check_data(config: DoctorConfig) -> Finding:
    """Check that the prepared data sets are complete."""
    folders = sorted(path.parent for path in Path(config.data_dir).glob("*/meta.json"))
    if not folders:
        small = f"train prepares small data sets itself; large ones: {format_command('prepare')} data=openwebtext"
        return Finding("note", f"none prepared in {one_line(Path(config.data_dir).absolute())}", small)
    found: list[str] = []
    lacking: list[str] = []
    for folder in folders:
        try:
            tokens = format_count(open_prepared(folder, "size").train.n_tokens)
            found.append(f"{one_line(folder.name)} ({tokens} tokens)")
        except BadEnvironment as error:  # complete, but GPT-2's tokenizer is missing
            lacking.append(f"{one_line(folder.name)}: {error}")
    return Finding("note", "; ".join(lacking), "see tokenizer") if lacking else Finding("ok", ", ".join(found))


def check_tokenizer(_: DoctorConfig) -> Finding:
    """Check GPT-2's tokenizer, if its files are here. Downloads nothing."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"
    if not folder.is_dir() or len(list(folder.iterdir())) < 2:
        later = "data.tokenizer=gpt2 downloads them once; without network set TIKTOKEN_CACHE_DIR to a folder with them"
        return Finding("note", f"GPT-2's files are not in {one_line(folder)}", later)
    ids = GPT2Tokenizer().encode("Hello, world").tolist()
    if ids != HELLO:
        raise BadEnvironment(f"GPT-2's tokenizer reads 'Hello, world' as {ids}, not {HELLO}")
    return Finding("ok", f"GPT-2's files are in {one_line(folder)}")


CHECKS = {
    "python": Check(
        check_python, "a new environment with Python 3.10 to 3.13; in a checkout: make clean setup PYTHON=python3.12"
    ),
    "torch": Check(check_torch, "pip install 'torch>=2.9'; in a checkout: make clean setup"),
    "device": Check(check_device, "device=cpu; a GPU needs a driver (try nvidia-smi) and a torch for its CUDA version"),
    "compile": Check(check_compile, "hardware.compile=false trains without it; else: apt install g++ python3-dev"),
    "disk": Check(check_disk, "runs_dir=FOLDER on a disk that you may write to"),
    "shared_memory": Check(check_shared_memory, MORE_SHARED_MEMORY),
    "slurm": Check(
        check_slurm, "ask the cluster's help desk, or module load slurm; else hydra/launcher=submitit_local"
    ),
    "wandb": Check(check_wandb, "tracking=local"),
    "data": Check(check_data, "prepare the data set again: nanogpt prepare … overwrite=true"),
    "tokenizer": Check(check_tokenizer, "remove the files in that folder, or set TIKTOKEN_CACHE_DIR to another one"),
}
