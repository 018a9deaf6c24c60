"""One-line errors for failures of CUDA, NCCL and gloo: the reason, a remedy, and the variable for verbose output.

Their texts are pages of C++; the first line, or NCCL's `Last error`, has the reason. The whole text goes to a file.
Without torch, because commands import this before torch.
"""

import re
import traceback
from dataclasses import dataclass

from nanogpt.errors import GPU_FAILED, BadEnvironment, LabError, PeerLost, one_line
from nanogpt.redaction import redact
from nanogpt.saved_text import save_text

COLLECTIVE = re.compile(r"gloo|nccl|connection|c10d|process ?group|socket|tcp ?store", re.IGNORECASE)
CUDA = re.compile(
    r"cuda (?:error|driver|failure|kernel)|cuda(?:Error|GetDeviceCount)|cublas|cudnn|cusolver|nvrtc", re.I
)
SOURCE_LOCATION = re.compile(r"^\[?[^\s:\[\]]*\.(?:cc|cpp|cu|h|hpp):\d+\]?[:,]?\s*")
"""The place in a library's source at the beginning of its message."""
STACK = re.compile(r"\n\s*(?:Exception raised from|frame #|C\+\+ CapturedTraceback|Traceback)")
VERBOSE_VARIABLES = {
    "nccl": "NCCL_DEBUG=WARN",
    "gloo": "TORCH_CPP_LOG_LEVEL=INFO",
    "torch.distributed": "TORCH_CPP_LOG_LEVEL=INFO",
    "cuda": "CUDA_LAUNCH_BLOCKING=1",
}
"""{library: environment variable for verbose output}."""


@dataclass(frozen=True)
class KnownFailure:
    """A kind of failure with a known remedy."""

    pattern: str
    remedy: str


SETUP = (  # failures of a machine or a command: the same command fails again
    KnownFailure(r"duplicate gpu", "two ranks use one GPU: start as many ranks as there are GPUs"),
    KnownFailure(
        r"driver version is insufficient|driver on your system is too old|nvidia driver .*too old",
        "the driver is older than this torch needs; nanogpt doctor says which torch fits",
    ),
    KnownFailure(
        r"no (?:network |socket |usable )*interface|unable to (?:find|resolve|determine).*(?:interface|address|host)"
        r"|no device.*interface|interface.* not found",
        "name the network interface in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME; ip -br address lists them",
    ),
    KnownFailure(
        r"/dev/shm|shared memory|no space left on device", "more shared memory: docker run --shm-size=8g, or --ipc=host"
    ),
    KnownFailure(r"no kernel image", "this torch has no code for this GPU; nanogpt doctor says which torch fits"),
    KnownFailure(
        r"busy or unavailable", "another process holds the GPU, or it is in exclusive mode; nvidia-smi says which"
    ),
    KnownFailure(r"not yet initialized", "the GPUs' fabric manager doesn't run: systemctl status nvidia-fabricmanager"),
    KnownFailure(r"invalid device ordinal|no cuda-capable device", "CUDA_VISIBLE_DEVICES names a GPU that isn't here"),
    KnownFailure(
        r"out of memory|_alloc_failed|cublas_status_not_initialized",
        "a smaller hardware.micro_batch_size; nvidia-smi says who else has memory",
    ),
)
MISUSE = KnownFailure(
    r"ncclInvalid(?:Usage|Argument)|invalid (?:usage|argument)", "the ranks were started in a way it can't use"
)
BROKEN = KnownFailure(
    r"uncorrectable|\becc\b|unspecified launch failure|hardware stack|nvlink|launch timed out|unknown error"
    r"|gpu is lost|fallen off|device unavailable",
    "dmesg | grep -i xid says more of the hardware",
)
"""Failures of a GPU or its driver, which may not occur on another GPU."""


def find_library(text: str) -> str:
    """Return the library that an error comes from, judged by its text."""
    text = STACK.split(text)[0]
    lowered = text.lower()
    return next(
        (name for name in ("nccl", "gloo") if name in lowered), "cuda" if CUDA.search(text) else "torch.distributed"
    )


def first_words(text: str) -> str:
    """Return the reason in a library's error on one line, without source location and stack."""
    text = STACK.split(text)[0]
    lines = [SOURCE_LOCATION.sub("", line.strip()) for line in text.splitlines() if line.strip()] or [""]
    if last := re.search(r"Last error:\s*(\S.*)", text):
        return one_line(last[1], 300)
    usual = next((line for line in lines if re.match(r"nccl[A-Z]\w+: ", line)), lines[0])
    return one_line(SOURCE_LOCATION.sub("", usual), 300)


def find_known_failure(text: str, *known: KnownFailure) -> KnownFailure | None:
    """Return the first of these failures that matches an error's text, or None."""
    plain = STACK.split(text)[0]
    return next((failure for failure in known if re.search(failure.pattern, plain, re.IGNORECASE)), None)


def describe_details(error: BaseException, library: str) -> str:
    """Return the end of an error's line: the variable for verbose output, and the file with the whole text."""
    text = redact("".join(traceback.format_exception(error)))
    try:
        where = f"; all of it: {one_line(save_text(library, text), 400)}"
    except (OSError, RuntimeError):  # a full disk; no home folder
        where = ""
    return f"{VERBOSE_VARIABLES[library]} says more{where}"


def as_device_error(error: BaseException) -> LabError | None:
    """Return a one-line error for an error of CUDA; None for any other error."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not CUDA.search(text):
        return None
    said, more = first_words(text).removeprefix("CUDA error: "), describe_details(error, "cuda")
    if known := find_known_failure(text, BROKEN):
        return BadEnvironment(f"{GPU_FAILED}: {said}; {known.remedy}; {more}")
    if known := find_known_failure(text, *SETUP):
        return BadEnvironment(f"cuda: {said}; {known.remedy}; {more}")
    return LabError(f"cuda: {said}; the call that failed may be an earlier one; {more}")


def as_group_error(error: BaseException, connecting: bool, lost: PeerLost) -> LabError:
    """Return a one-line error for a collective that failed although no rank is known to be lost.

    `lost` is the error if a rank on another machine may be lost, which cannot be checked from here. A failure of the
    set-up has exit code 5 and not that of a lost rank, because it would recur.
    """
    text = str(error)
    library, said = find_library(text), first_words(text)
    more = describe_details(error, library)
    if known := find_known_failure(text, BROKEN):
        return BadEnvironment(f"{GPU_FAILED}: {library}: {said}; {known.remedy}; {more}")
    if known := find_known_failure(text, *SETUP, MISUSE):
        return BadEnvironment(f"{library}: {said}; {known.remedy}; {more}")
    what = "could not connect to the other ranks" if connecting else str(lost)
    found = PeerLost(f"{what}; {library}: {said}; {more}")
    found.reported_elsewhere = lost.reported_elsewhere and not connecting
    return found
