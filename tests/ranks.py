"""Trainings in real processes that a test may kill, stop and signal, with faults planted inside them.

The processes are forked from a server that has loaded torch, so one costs hundredths of a second instead of seconds.
"""

import dataclasses
import gc
import hashlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.estimates.plan import Rate
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run

HANG = 600.0  # seconds after which a wait is given up; only a hang takes that long

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["nanogpt.training.run", "nanogpt.tracking.plots", "cli.entry", "torch._dynamo", "wandb", "tests.ranks"]
)


@dataclass(frozen=True)
class Fault:
    """Something that happens to one rank (None: to each) around the n-th call of a function of the program."""

    target: str
    """`nanogpt.checkpoint.write_tensors`, `nanogpt.checkpoint.Checkpoints.prune`."""
    call: int
    action: str
    """A signal of the process to itself, several (`SIGTERM+SIGINT`), or one of the words in `happen` and `plant`."""
    rank: int | None = 0
    after: bool = False
    """After the call instead of before it."""


def plant(fault: Fault) -> None:
    """Wrap the function in this process."""
    owner_name, name = fault.target.rsplit(".", 1)
    try:
        owner: Any = importlib.import_module(owner_name)
    except ModuleNotFoundError:
        module, kind = owner_name.rsplit(".", 1)
        owner = getattr(importlib.import_module(module), kind)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def faulty(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.call and not fault.after:
            happen(fault.action)
        result = real(*arguments, **named)
        if calls == fault.call and fault.action in ("true", "false"):
            return fault.action == "true"
        if fault.action.startswith("returns "):  # at every call
            return float(fault.action.removeprefix("returns "))
        if calls == fault.call and fault.action == "nan":
            return result * float("nan")
        if calls == fault.call and fault.action == "spike":
            return result * 1e6
        if calls == fault.call and fault.action == "other data":
            return dataclasses.replace(result, files=result.files | {"other": "0" * 64})
        if calls == fault.call and fault.after:
            happen(fault.action)
        return result

    setattr(owner, name, faulty)


def happen(action: str) -> None:
    if action == "oserror":
        raise OSError(5, "Input/output error")
    if action.startswith("sleep "):
        time.sleep(float(action.removeprefix("sleep ")))
    elif action.startswith("until "):  # a file is there
        while not Path(action.removeprefix("until ")).exists():
            time.sleep(0.01)
    elif "+" in action:  # signals one after the other
        for name in action.split("+"):
            happen(name)
            time.sleep(0.15)
    elif action == "broken pipe":
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
    elif action == "full output":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1)
    elif action not in ("nan", "spike", "other data", "true", "false") and not action.startswith("returns "):
        os.kill(os.getpid(), signal.Signals[action])


def take(environment: Mapping[str, str], out: str, err: str) -> None:
    """Let this process have an environment, and files for what it says."""
    os.environ.clear()  # the server's, which is that of the test that came first
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def rank_main(
    config: str, rank: int, world: int, folder: str, faults: list[Fault], environment: Mapping[str, str]
) -> None:
    """The body of one process."""
    gc.freeze()  # what the server has loaded: looking through it for garbage costs more than a whole training
    take(environment, f"{folder}/rank-{rank}.txt", f"{folder}/rank-{rank}.txt")
    from cli.entry import exit_on_error
    from nanogpt.training.run import train

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests were started with nohup
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the door is reached: Python's traceback would be the harness's
    if world > 1:
        places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in places.items()}, NANOGPT_STORE=f"{folder}/store")
    # Half of the time, and none of the faults; and passes of the model that would count as a training's.
    importlib.import_module("nanogpt.tracking.plots").plot_loss = lambda *_: None
    importlib.import_module("nanogpt.training.auto_batch_size").measure_rate = lambda *_: Rate(1e9, "not measured")
    for fault in faults:
        if fault.rank in (None, rank):
            plant(fault)
    built = schema.from_dict(TrainConfig, importlib.import_module("json").loads(config))
    exit_on_error("train", lambda: begun() or train(built))


def begun() -> None:
    """Inside the door: Ctrl-C is its business now."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Started:
    """A training on `world` ranks that runs."""

    def __init__(
        self,
        config: TrainConfig,
        world: int = 1,
        faults: list[Fault] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        near = Path(config.runs_dir).parent
        near.mkdir(parents=True, exist_ok=True)
        self.config, self.folder = config, Path(tempfile.mkdtemp(prefix="ranks-", dir=near))
        text = schema.to_json(config)
        there = dict(os.environ) | (environment or {})
        arguments = [(text, rank, world, str(self.folder), faults or [], there) for rank in range(world)]
        self.ranks = [processes.Process(target=rank_main, args=one, daemon=True) for one in arguments]
        for rank in self.ranks:
            rank.start()

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """A signal to some ranks, or to all."""
        for rank in ranks or range(len(self.ranks)):
            if (pid := self.ranks[rank].pid) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def until_rows(self, count: int) -> "Started":
        """Wait until metrics.jsonl has so many rows, or the training is over."""
        metrics = locate_run(self.config) / "metrics.jsonl"
        deadline = time.monotonic() + HANG
        files = [self.folder / f"rank-{rank}.txt" for rank in range(len(self.ranks))]
        while self.alive() and (len(read_rows(metrics)) < count or not all(file.exists() for file in files)):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.002)
        return self

    def until_stopped(self, rank: int) -> None:
        """Wait until a rank stands still, by SIGSTOP."""
        about = Path(f"/proc/{self.ranks[rank].pid}/stat")
        deadline = time.monotonic() + HANG
        while about.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.002)

    def alive(self) -> bool:
        return any(rank.is_alive() for rank in self.ranks)

    def wait(self, *ranks: int) -> list[int | None]:
        """The exit codes by rank, once some ranks, or all, are done; what still runs after that has None."""
        deadline = time.monotonic() + HANG
        for rank in [self.ranks[number] for number in ranks] or self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        codes = [rank.exitcode for rank in self.ranks]
        self.send(signal.SIGKILL)
        for rank in self.ranks:
            rank.join()
        return codes

    def output(self, rank: int = 0) -> str:
        file = self.folder / f"rank-{rank}.txt"
        return file.read_text() if file.exists() else ""  # killed before it could say anything


def run(config: TrainConfig, world: int = 1, faults: list[Fault] | None = None) -> tuple[list[int | None], str]:
    """Exit codes by rank and rank 0's output."""
    started = Started(config, world, faults)
    codes = started.wait()
    return codes, started.output()


def result(config: TrainConfig) -> dict[str, str]:
    """Digests of all that must not depend on what happened on the way, and the invariants that hold at any end."""
    path = locate_run(config)
    run = RunDirectory(path)
    last = run.checkpoints.path(run.checkpoints.steps()[-1])
    assert not [name for kind in ("tmp", "old", "del") for name in path.glob(f"checkpoints/.{kind}-*")]
    files = [path / "metrics.jsonl", path / "tokenizer.json", *sorted(path.glob("samples/*"))]
    files += [last / "model.safetensors", last / "optimizer.safetensors"]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def goes_on(config: TrainConfig, undisturbed: Callable[..., dict[str, str]], world: int = 1) -> str:
    """The same command again continues where the newest good checkpoint is, and ends exactly. Returns what it said."""
    checkpoints = RunDirectory(locate_run(config)).checkpoints
    loaded = checkpoints.load_newest()[0] if checkpoints.steps() else None
    codes, output = run(config, world)
    assert codes == [0] * world, output
    assert loaded is None or loaded.state["step"] in (0, 20) or f"continuing at step {loaded.state['step']}" in output
    assert result(config) == undisturbed(world)
    return output
