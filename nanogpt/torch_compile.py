"""Requirements of torch.compile on this machine, and the folder of its cache."""

import importlib
import os
import re
import shutil
import socket
import stat
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

from nanogpt.config import Attention, HardwareConfig
from nanogpt.distributed.env import RankEnv, read_rank_env
from nanogpt.errors import BadEnvironment, one_line

OLDEST_CAPABILITY = (7, 0)  # of a GPU that Triton compiles for
NETWORK = re.compile(
    r"nfs4?|lustre|cifs|smb3|smbfs|gpfs|beegfs|ceph|glusterfs|panfs|pvfs2|orangefs|afs|wekafs|autofs|fuse\..*"
)
"""Network file systems, and autofs, which is one that is not mounted yet."""
HEADER_PATHS = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")  # where compilers look too


def choose_compile(hardware: HardwareConfig, device: torch.device, section: str = "hardware.") -> tuple[bool, str]:
    """Return whether the model is compiled on `device`, and the problem if `auto` would compile but can't.

    `auto` compiles on CUDA alone. Raises BadEnvironment if compiling was asked for and something is missing.
    """
    if not hardware.must_compile and (hardware.compile is False or device.type != "cuda"):
        return False, ""
    missing = find_compile_problem(device)
    if missing and hardware.must_compile:
        key = "compile=true" if hardware.compile is True else "fp8=true" if hardware.fp8 else "compile_mode"
        key = key if "=" in key else f"{key}={hardware.compile_mode}"
        raise BadEnvironment(f"{section}{key}: torch.compile can't work here: {missing}")
    return not missing, missing


def find_compile_problem(device: torch.device) -> str:
    """Return what torch.compile lacks to work on `device`, each with its remedy; empty if nothing is missing."""
    found: list[str] = []
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST_CAPABILITY:
            need, has = (".".join(map(str, version)) for version in (OLDEST_CAPABILITY, capability))
            found.append(
                f"Triton needs a GPU of compute capability {need}, {torch.cuda.get_device_name(device)} has {has}"
            )
        found += check_triton()
        if not any(map(shutil.which, [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"])):
            found.append(f"no C compiler ({os.environ.get('CC') or 'gcc, clang'}): apt install gcc, or set CC")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        found.append(f"no C++ compiler ({one_line(compiler)}): apt install g++, or set CXX")
    if not has_python_header():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        where = one_line(Path(sysconfig.get_paths()["include"]))
        found.append(f"no Python.h in {where}: apt install python{version}-dev, dnf install python{version}-devel")
    return "; ".join(found)


def check_triton() -> list[str]:
    """Return why Triton can't be imported, if it can't."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return [f"no Triton: pip install triton ({one_line(error)})"]
    except Exception as error:  # a broken installation may raise anything
        return [f"Triton can't be imported: {type(error).__name__}: {one_line(error)}"]
    return []


def has_python_header() -> bool:
    """Return whether C compilers will find Python.h, which both Triton's and the CPU's generated code include."""
    named = [folder for name in HEADER_PATHS for folder in os.environ.get(name, "").split(os.pathsep) if folder]
    return any(Path(folder, "Python.h").is_file() for folder in (sysconfig.get_paths()["include"], *named))


def set_compile_cache(attention: Attention) -> None:
    """Set the folder of torch.compile's cache, see `find_cache_folder`, and the tag of its entries.

    torch tells graphs of different attention kernels apart only by this tag (torch 2.13).
    """
    torch.compiler.config.cache_key_tag = f"attention={attention}"
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(find_cache_folder(read_rank_env(os.environ)))


def find_cache_folder(rank_env: RankEnv) -> Path:
    """Return a folder that only this user may write to, because torch loads code from it.

    It is in XDG_CACHE_HOME or ~/.cache if that is a local disk and all ranks of the run are on this machine. Otherwise
    ranks on several nodes would race in a shared folder, and it is in SLURM_TMPDIR, TMPDIR or the system's temporary
    folder.
    """
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    local = home.is_absolute() and rank_env.world == rank_env.local_world and not is_on_network(home)
    places = [home / "nanogpt-lab"] if local else []
    for base in [os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), tempfile.gettempdir()]:
        if base and Path(base).is_dir():
            of_node = f"-{socket.gethostname()}" if is_on_network(Path(base)) else ""
            places.append(Path(base, f"nanogpt-lab-{os.geteuid()}{of_node}"))
    for folder in places:
        if own_folder(folder) and (found := own_folder(folder / "inductor")):
            return found
    return Path(tempfile.mkdtemp(prefix="nanogpt-lab-"))  # for this process alone


def own_folder(path: Path) -> Path | None:
    """Return a folder, made if needed, that is this user's and closed to others; None if it is another's, or a link."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return None
        path.chmod(0o700)
        return path if os.access(path, os.W_OK) else None
    except OSError:  # no home, or one that can't be written
        return None


def is_on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Return whether a folder, which need not exist, is on a file system that other machines may share."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    kinds: dict[str, str] = {}
    for line in lines:
        _, where, kind, *_ = line.split(" ")
        kinds[re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where)] = kind  # the last mount is on top
    whole = Path(os.path.realpath(path))
    kind = next((kinds[str(folder)] for folder in (whole, *whole.parents) if str(folder) in kinds), "")
    return NETWORK.fullmatch(kind) is not None
