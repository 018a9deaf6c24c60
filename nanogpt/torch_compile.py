"""torch.compile on this machine: what it lacks to work, and where its results are kept."""

import importlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from nanogpt.config import Attention, HardwareConfig
from nanogpt.errors import BadEnvironment, escaped

OLDEST_CAPABILITY = (7, 0)  # of a GPU that Triton compiles for
HEADER_PATHS = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")  # where compilers look too


def choose_compile(hardware: HardwareConfig, device: torch.device, section: str = "hardware.") -> tuple[bool, str]:
    """Return whether the model is compiled on `device`, and what is missing where `auto` would compile but can't.

    `auto` compiles on CUDA alone. Raises BadEnvironment if compiling was asked for and something is missing.
    """
    if not hardware.must_compile and (hardware.compile is False or device.type != "cuda"):
        return False, ""
    missing = find_missing(device)
    if missing and hardware.must_compile:
        key = "compile=true" if hardware.compile is True else "fp8=true" if hardware.fp8 else "compile_mode"
        key = key if "=" in key else f"{key}={hardware.compile_mode}"
        raise BadEnvironment(f"{section}{key}: torch.compile can't work here: {missing}")
    return not missing, missing


def find_missing(device: torch.device) -> str:
    """Return what torch.compile lacks to work on `device`, each with its remedy; empty if nothing is missing."""
    found: list[str] = []
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY:
            need, has = (".".join(map(str, one)) for one in (OLDEST_CAPABILITY, capability))
            found.append(
                f"Triton needs a GPU of compute capability {need}, {torch.cuda.get_device_name(device)} has {has}"
            )
        found += check_triton()
        if not any(map(shutil.which, [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"])):
            found.append(f"no C compiler ({os.environ.get('CC') or 'gcc, clang'}): apt install gcc, or set CC")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        found.append(f"no C++ compiler ({escaped(compiler)}): apt install g++, or set CXX")
    if not has_python_header():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        where = escaped(Path(sysconfig.get_paths()["include"]))
        found.append(f"no Python.h in {where}: apt install python{version}-dev, dnf install python{version}-devel")
    return "; ".join(found)


def check_triton() -> list[str]:
    """Return why Triton can't be imported, if it can't."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return [f"no Triton: pip install triton ({escaped(error)})"]
    except Exception as error:  # a broken installation may raise anything
        return [f"Triton can't be imported: {type(error).__name__}: {escaped(error)}"]
    return []


def has_python_header() -> bool:
    """Return whether C compilers will find Python.h, which both Triton's and the CPU's generated code include."""
    named = [folder for name in HEADER_PATHS for folder in os.environ.get(name, "").split(os.pathsep) if folder]
    return any(Path(folder, "Python.h").is_file() for folder in (sysconfig.get_paths()["include"], *named))


def keep_compiled(attention: Attention) -> None:
    """Keep what torch.compile makes for this user's next start, where nobody else may write: it is code.

    The place is TORCHINDUCTOR_CACHE_DIR where that is set, else in XDG_CACHE_HOME or ~/.cache. torch tells graphs of
    different attention kernels apart only by this tag (torch 2.13).
    """
    torch.compiler.config.cache_key_tag = f"attention={attention}"
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nanogpt-lab" / "inductor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except (OSError, RuntimeError):  # no home, or one that can't be written: torch has a place of its own
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
