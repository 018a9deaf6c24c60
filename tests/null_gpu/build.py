"""Build the null GPU for the torch of this Python: `python -m tests.null_gpu.build FOLDER`. Needs gcc and nm.

FOLDER gets one library that stands before CUDA's runtime, cuBLAS and NCCL (LD_PRELOAD) and is the driver, libcuda.so.1.
Calls of torch and Triton that the C files do not define succeed and do nothing.
"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
PACKAGES = Path(sysconfig.get_path("platlib"))
OURS = re.compile(r"\b(cu(?!File)[A-Z]\w+|cuda[A-Z]\w+|cublas[A-Z]\w+|nccl[A-Z]\w+)(?<!_t)\b")


def build(folder: Path) -> Path:
    """Compile the library into a folder. Raises CalledProcessError where gcc or nm fails."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-w", "-fPIC", f"-I{PACKAGES / 'triton/backends/nvidia/include'}"]
    objects = [compile_source(source, folder / f"{source.stem}.o", flags) for source in SOURCES]
    rest = folder / "rest.c"
    missing = sorted(names_called() - symbols(objects, "--defined-only"))
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in missing))
    objects.append(compile_source(rest, folder / "rest.o", ["-w", "-fPIC", "-fno-builtin"]))
    library = folder / "libcuda.so.1"
    link = ["gcc", "-shared", f"-Wl,-soname,{library.name}", "-o", library, *objects, "-lpthread", "-ldl"]
    subprocess.run(link, check=True)
    short = folder / "libcuda.so"  # what a linker takes for -lcuda
    short.unlink(missing_ok=True)
    short.symlink_to(library.name)
    return library


def compile_source(source: Path, target: Path, flags: list[str]) -> Path:
    subprocess.run(["gcc", *flags, "-c", "-o", target, source], check=True)
    return target


def names_called() -> set[str]:
    """Return what torch's libraries leave to CUDA's, and what Triton's C source for the driver names."""
    libraries = [*(PACKAGES / "torch" / "lib").glob("*.so*"), *PACKAGES.glob("torch/_C*.so")]
    found = {name for name in symbols(libraries, "--undefined-only") if OURS.fullmatch(name)}
    for source in PACKAGES.glob("triton/backends/nvidia/*.c"):
        found |= {name for name in OURS.findall(source.read_text()) if name.startswith("cu")}
    return found


def symbols(files: list[Path], which: str) -> set[str]:
    """Return the names of dynamic symbols of libraries, or of all symbols of objects."""
    found: set[str] = set()
    for file in files:
        dynamic = [] if file.suffix == ".o" else ["-D"]
        command = ["nm", *dynamic, which, "--format=posix", str(file)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        found |= {line.split()[0].partition("@")[0] for line in lines if line.strip()}
    return found


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).resolve()))
