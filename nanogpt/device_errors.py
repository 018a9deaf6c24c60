"""Turn errors of CUDA, nccl and gloo into one line: their words, a remedy, the variable that makes them say more.

Their texts are pages of C++, whose first line, or nccl's `Last error`, says what happened. All of it goes to a file.
Without torch: commands import this before torch.
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
PLACE = re.compile(r"^\[?[^\s:\[\]]*\.(?:cc|cpp|cu|h|hpp):\d+\]?[:,]?\s*")
"""Where in its source a library found the error."""
STACK = re.compile(r"\n\s*(?:Exception raised from|frame #|C\+\+ CapturedTraceback|Traceback)")
MORE = {
    "nccl": "NCCL_DEBUG=WARN",
    "gloo": "TORCH_CPP_LOG_LEVEL=INFO",
    "torch.distributed": "TORCH_CPP_LOG_LEVEL=INFO",
    "cuda": "CUDA_LAUNCH_BLOCKING=1",
}
"""The environment variable with which each says more."""


@dataclass(frozen=True)
class Known:
    """A failure whose remedy is known."""

    pattern: str
    remedy: str


SETUP = (  # of a machine or a command: the same command fails again
    Known(r"duplicate gpu", "two ranks use one GPU: start as many ranks as there are GPUs"),
    Known(
        r"driver version is insufficient|driver on your system is too old|nvidia driver .*too old",
        "the driver is older than this torch needs; nanogpt doctor says which torch fits",
    ),
    Known(
        r"no (?:network |socket |usable )*interface|unable to (?:find|resolve|determine).*(?:interface|address|host)"
        r"|no device.*interface|interface.* not found",
        "name the network interface in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME; ip -br address lists them",
    ),
    Known(
        r"/dev/shm|shared memory|no space left on device", "more shared memory: docker run --shm-size=8g, or --ipc=host"
    ),
    Known(r"no kernel image", "this torch has no code for this GPU; nanogpt doctor says which torch fits"),
    Known(r"busy or unavailable", "another process holds the GPU, or it is in exclusive mode; nvidia-smi says which"),
    Known(r"not yet initialized", "the GPUs' fabric manager doesn't run: systemctl status nvidia-fabricmanager"),
    Known(r"invalid device ordinal|no cuda-capable device", "CUDA_VISIBLE_DEVICES names a GPU that isn't here"),
    Known(
        r"out of memory|_alloc_failed|cublas_status_not_initialized",
        "a smaller hardware.micro_batch_size; nvidia-smi says who else has memory",
    ),
)
MISUSE = Known(
    r"ncclInvalid(?:Usage|Argument)|invalid (?:usage|argument)", "the ranks were started in a way it can't use"
)
BROKEN = Known(
    r"uncorrectable|\becc\b|unspecified launch failure|hardware stack|nvlink|launch timed out|unknown error"
    r"|gpu is lost|fallen off|device unavailable",
    "dmesg | grep -i xid says more of the hardware",
)
"""Failures of a GPU or its driver: another GPU may do what this one couldn't."""


def find_library(text: str) -> str:
    """Return which library an error is of, by its text."""
    text = STACK.split(text)[0]
    lowered = text.lower()
    return next(
        (name for name in ("nccl", "gloo") if name in lowered), "cuda" if CUDA.search(text) else "torch.distributed"
    )


def first_words(text: str) -> str:
    """Return what a library said, on one line, without its place in the source and its stack."""
    text = STACK.split(text)[0]
    lines = [PLACE.sub("", line.strip()) for line in text.splitlines() if line.strip()] or [""]
    if last := re.search(r"Last error:\s*(\S.*)", text):
        return one_line(last[1], 300)
    usual = next((line for line in lines if re.match(r"nccl[A-Z]\w+: ", line)), lines[0])
    return one_line(PLACE.sub("", usual), 300)


def find_known(text: str, *known: Known) -> Known | None:
    """Return the first of these failures that an error's text tells of, if it is one of them."""
    plain = STACK.split(text)[0]
    return next((one for one in known if re.search(one.pattern, plain, re.IGNORECASE)), None)


def say_more(error: BaseException, library: str) -> str:
    """Return the end of an error's line: the variable that tells more, and the file with all of the text."""
    text = redact("".join(traceback.format_exception(error)))
    try:
        where = f"; all of it: {one_line(save_text(library, text), 400)}"
    except (OSError, RuntimeError):  # a full disk; no home folder
        where = ""
    return f"{MORE[library]} says more{where}"


def as_device_error(error: BaseException) -> LabError | None:
    """Return an error of CUDA as one line; None for any other error."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not CUDA.search(text):
        return None
    said, more = first_words(text).removeprefix("CUDA error: "), say_more(error, "cuda")
    if known := find_known(text, BROKEN):
        return BadEnvironment(f"{GPU_FAILED}: {said}; {known.remedy}; {more}")
    if known := find_known(text, *SETUP):
        return BadEnvironment(f"cuda: {said}; {known.remedy}; {more}")
    return LabError(f"cuda: {said}; the call that failed may be an earlier one; {more}")


def as_group_error(error: BaseException, connecting: bool, lost: PeerLost) -> LabError:
    """Return a failed collective, where no rank is known to be gone, as one line.

    `lost` is what is said of a rank on another machine, whose end can't be seen from here. A mistake of set-up would
    come again, and is no loss of a rank: code 5.
    """
    text = str(error)
    library, said = find_library(text), first_words(text)
    more = say_more(error, library)
    if known := find_known(text, BROKEN):
        return BadEnvironment(f"{GPU_FAILED}: {library}: {said}; {known.remedy}; {more}")
    if known := find_known(text, *SETUP, MISUSE):
        return BadEnvironment(f"{library}: {said}; {known.remedy}; {more}")
    what = "could not connect to the other ranks" if connecting else str(lost)
    found = PeerLost(f"{what}; {library}: {said}; {more}")
    found.reported_elsewhere = lost.reported_elsewhere and not connecting
    return found
