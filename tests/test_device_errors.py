"""Errors of nccl, gloo and CUDA as torch 2.13 raises them become one line with a remedy; the rest goes to a file."""

import re
from pathlib import Path

import pytest

from cli.exit_codes import to_lab_error
from launch.requeue_policy import AttemptEnd, AttemptHistory, RestartLimits, decide
from nanogpt.device_errors import as_device_error
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import BadEnvironment, LabError, PeerLost

STACK = "\nException raised from checkNCCL at /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77 (most recent call):"
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, {}, NCCL version 2.27.5\n{}{}" + STACK
USAGE = "invalid usage (run with NCCL_DEBUG=WARN for details)"
SYSTEM = "unhandled system error (run with NCCL_DEBUG=INFO for details)"
DUPLICATE = NCCL.format(
    USAGE,
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n",
    "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
)
SHARED = NCCL.format(
    SYSTEM,
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed.\n",
    "Last error:\nError while creating shared memory segment /dev/shm/nccl-a1 (size 9637888), error: No space left",
)
REMOTE = NCCL.format("remote process exited or there was a network error", "ncclRemoteError: A call failed.\n", "")
ADDRESS = "[/pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] Unable to find address for: eth7" + STACK
CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41935" + STACK
HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call\nFor debugging consider passing …"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def two_ranks(rank: int = 0) -> ProcessGroup:
    """Two ranks of which none is known to be gone: the other is on another machine."""
    return ProcessGroup(RankEnv(rank, 2, 0, 1))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (DUPLICATE, 5, r"^nccl: Duplicate GPU detected : rank 1 and rank 0 .*as many ranks as .*NCCL_DEBUG=WARN"),
        (SHARED, 5, r"^nccl: Error while creating shared memory segment.*--shm-size=8g.*NCCL_DEBUG=WARN"),
        (ADDRESS, 5, r"^gloo: Unable to find address for: eth7; .*GLOO_SOCKET_IFNAME.*TORCH_CPP_LOG_LEVEL=INFO"),
        (NCCL.format(USAGE, "ncclInvalidUsage: This usually …\n", ""), 5, r"^nccl: ncclInvalidUsage: .*NCCL_DEBUG"),
        (REMOTE, 7, r"^could not connect to the other ranks; nccl: ncclRemoteError: A call failed\.; NCCL_DEBUG=WARN"),
        (CLOSED, 7, r"^could not connect to the other ranks; gloo: Connection closed by peer \[10\.0\.0\.2\]:41935; "),
    ],
)
def test_what_a_library_says_before_the_first_step(text: str, code: int, words: str, state: Path) -> None:
    error = two_ranks().to_peer_lost(RuntimeError(text), 0)
    assert isinstance(error, LabError) and error.exit_code == code and not error.reported_elsewhere
    assert re.search(words, str(error)) and "Exception raised" not in str(error) and ".cc" not in str(error)
    kept = Path(str(error).rpartition("all of it: ")[2])
    assert kept.parent == state / "nanogpt-lab" and "Exception raised from checkNCCL" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_connection_that_breaks_later_is_a_lost_rank() -> None:
    group = two_ranks()
    group.connected = True
    error = group.to_peer_lost(RuntimeError(CLOSED), 7)
    assert isinstance(error, PeerLost)
    assert str(error).startswith("another rank lost at step 7; the same command continues")
    assert "gloo: Connection closed by peer" in str(error)
    other = RuntimeError("a mistake in a formula")
    assert group.to_peer_lost(other, 7) is other and ProcessGroup().to_peer_lost(RuntimeError(CLOSED), 7) is not None


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (
            "device-side assert triggered",
            1,
            "^cuda: device-side assert triggered; .*an earlier one; CUDA_LAUNCH_BLOCKI",
        ),
        ("an illegal memory access was encountered", 1, "^cuda: an illegal memory access .*CUDA_LAUNCH_BLOCKING=1"),
        ("uncorrectable ECC error encountered", 5, "^the GPU failed: uncorrectable ECC error encountered; dmesg"),
        ("unspecified launch failure", 5, "^the GPU failed: unspecified launch failure; dmesg"),
        ("out of memory", 5, "^cuda: out of memory; a smaller hardware.micro_batch_size; nvidia-smi"),
        ("no kernel image is available for execution on the device", 5, "^cuda: no kernel image .*which torch fits"),
        ("all CUDA-capable devices are busy or unavailable", 5, "^cuda: all .*; another process holds the GPU"),
        ("system not yet initialized", 5, "nvidia-fabricmanager"),
        (
            "CUDA driver version is insufficient for CUDA runtime version",
            5,
            "the driver is older than this torch needs",
        ),
    ],
)
def test_cuda_errors_are_one_line(said: str, code: int, words: str) -> None:
    error = to_lab_error("train", RuntimeError(f"CUDA error: {said}{HINT}"))
    assert error is not None and error.exit_code == code and re.search(words, str(error)), error
    assert "asynchronously" not in str(error) and "all of it: " in str(error)


def test_other_errors_are_left_alone() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("CUDA error: no"), KeyError("cuda")):
        assert as_device_error(error) is None


def test_only_what_may_go_well_elsewhere_is_put_back() -> None:
    """A mistake of set-up fails at once; a broken GPU is tried again after progress, an unknown end of a rank too."""
    duplicate = two_ranks().to_peer_lost(RuntimeError(DUPLICATE), 0)
    closed = two_ranks().to_peer_lost(RuntimeError(CLOSED), 0)
    broken = as_device_error(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    found: list[str] = []
    for error, step in ((duplicate, 5), (closed, 5), (broken, 5), (broken, 0)):
        assert isinstance(error, LabError)
        found.append(
            decide(AttemptEnd(error.exit_code, str(error)), AttemptHistory(step, [0]), RestartLimits(100, 3))[0]
        )
    assert found == ["failed", "requeued", "requeued", "failed"] and isinstance(broken, BadEnvironment)
