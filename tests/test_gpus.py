"""Each rank takes a GPU of its own, whatever it sees; where it can't, all end before the first step with one line."""

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogpt.distributed.env import STORE_VARIABLE, RankEnv
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.gpus import VISIBLE, assign_gpus, choose_gpu, find_unreachable, list_gpus, report_gpus
from tests.commands import ROOT, command

ALL = ["a", "b", "c", "d"]


def can_be_assigned(seen: list[list[str]]) -> bool:
    """Return whether some choice gives each rank a GPU of its own, by trying all."""
    gpus = sorted({gpu for one in seen for gpu in one})
    return any(
        all(gpu in one for gpu, one in zip(order, seen, strict=False)) for order in permutations(gpus, len(seen))
    )


@pytest.mark.parametrize(
    ("seen", "taken"),
    [
        ([ALL] * 4, "abcd"),  # torchrun, hardware.devices, srun --gpus-per-node
        ([["a"], ["b"], ["c"]], "abc"),  # --gpus-per-task=1
        ([["a", "b"], ["c", "d"]], "ac"),  # --gpus-per-task=2
        ([["a", "b"], ["a", "b"], ["c", "d"], ["c", "d"]], "abcd"),  # --gpu-bind=closest
        ([ALL, ["a"]], "ba"),  # unequal
        ([["a", "b"], ["b", "c"], ["a"]], "bca"),
        ([["a"], ["a"]], "a-"),
        ([ALL, ALL, ["a"], ["a"]], "cba-"),
        ([[], []], "--"),
    ],
)
def test_ranks_take_gpus_of_their_own(seen: list[list[str]], taken: str) -> None:
    found = assign_gpus(seen)
    assert "".join("-" if n is None else gpus[n] for n, gpus in zip(found, seen, strict=True)) == taken
    assert (None not in found) == can_be_assigned(seen)


def facts(*seen: list[str], machines: str = "", unreachable: str = "") -> list[dict[str, object]]:
    names = machines or "m" * len(seen)
    return [{"gpus": gpus, "machine": name, "unreachable": unreachable} for gpus, name in zip(seen, names, strict=True)]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({STORE_VARIABLE: "x"}, r"^hardware\.devices=2: this machine has 1 GPU \(CUDA_VISIBLE_DEVICES=GPU-9\)$"),
        ({"TORCHELASTIC_RUN_ID": "x"}, r"^--nproc-per-node=2: ranks 0, 1 see only 1 GPU .*torchrun --nproc-per-node=1"),
        (
            {"RANK": "0", "SLURM_PROCID": "0", "WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "2"},
            r"^srun --ntasks-per-node=2: ranks 0, 1 see only 1 GPU .*--gpus-per-task=1",
        ),
        ({}, r"^LOCAL_WORLD_SIZE=2: ranks 0, 1 see only 1 GPU .*another CUDA_VISIBLE_DEVICES for each rank"),
    ],
)
def test_two_ranks_on_one_gpu_name_what_was_given(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (STORE_VARIABLE, "TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {VISIBLE: "GPU-9"}).items():
        monkeypatch.setenv(name, value)
    for rank in range(2):
        with pytest.raises(BadInput, match=words):
            choose_gpu(facts(["GPU-9"], ["GPU-9"]), RankEnv(rank, 2, rank, 2))


def test_some_ranks_without_a_gpu() -> None:
    with pytest.raises(BadEnvironment, match=r"rank 1 sees no GPU, but other ranks do: .*hardware.device=cpu"):
        choose_gpu(facts(["a"], []), RankEnv(0, 2, 0, 2))
    assert choose_gpu(facts([], []), RankEnv(0, 2, 0, 2)) is None


def test_a_host_name_that_leads_back_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Debian's images; between machines alone does it matter, and the interface may be named."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    monkeypatch.setattr("socket.gethostbyname", lambda _: "127.0.1.1")  # pyright: ignore[reportUnknownLambdaType]
    why = find_unreachable()
    assert why == "its name node7 resolves to 127.0.1.1"
    place = RankEnv(0, 2, 0, 1)
    with pytest.raises(
        BadEnvironment, match=r"^rank 0: its name node7 .*set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    ):
        choose_gpu(facts([], [], machines="mn", unreachable=why), place)
    assert choose_gpu(facts([], [], unreachable=why), place) is None
    assert report_gpus("cpu", place)["unreachable"] == why
    assert report_gpus("cpu", RankEnv(0, 2, 0, 2))["unreachable"] == ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert find_unreachable() == ""


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "cuda", ["uuid 0", "uuid 1"]),
        ("GPU-5,GPU-7", "auto", ["uuid 0", "uuid 1"]),
        ("MIG-3,MIG-4", "auto", ["MIG-3", "MIG-4"]),  # slices of one GPU, whose UUID is the same
        (None, "cuda:1", ["uuid 1"]),
        (None, "cpu", []),
    ],
)
def test_the_identity_of_what_a_rank_sees(
    visible: str | None, device: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(uuid=f"uuid {n}"))  # pyright: ignore[reportUnknownLambdaType]
    assert list_gpus(device) == expected


def test_gpus_whose_uuids_are_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As virtual ones may have: their numbers, or what CUDA_VISIBLE_DEVICES calls them, tell them apart."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0"))  # pyright: ignore[reportUnknownLambdaType]
    assert len(set(list_gpus("cuda"))) == 2
    monkeypatch.setenv(VISIBLE, "5,7")
    assert [name.split()[-1] for name in list_gpus("cuda")] == ["5", "7"]


def run_ranks(folder: Path, *visible: str) -> list[tuple[int, str]]:
    """Start a rank for each CUDA_VISIBLE_DEVICES on a machine of four pretended GPUs. Returns (exit code, output)."""

    def start(rank: int) -> tuple[int, str]:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(visible), "LOCAL_WORLD_SIZE": len(visible)}
        words = {name: str(value) for name, value in places.items()}
        words |= {STORE_VARIABLE: str(folder / "store"), VISIBLE: visible[rank]}
        done = command("-m", "tests.pretended_gpus", "4", folder=ROOT, **words)
        return done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(len(visible)) as pool:
        return list(pool.map(start, range(len(visible))))


def test_real_ranks_agree(tmp_path: Path) -> None:
    """One that sees several GPUs leaves the only one of another rank to it; MIG slices are told apart."""
    assert run_ranks(tmp_path, "0,1", "0", "MIG-7") == [(0, "0 GPU-0-1\n"), (0, "1 GPU-0-0\n"), (0, "2 MIG-7\n")]


def test_real_ranks_refuse_to_share(tmp_path: Path) -> None:
    found = run_ranks(tmp_path, "GPU-0-2", "2")
    assert [code for code, _ in found] == [2, 2]
    assert "".join(text for _, text in found).count("error: hardware.devices=2: this machine has 1 GPU") == 1
