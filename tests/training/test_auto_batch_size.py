"""The micro-batch that fits: found by `auto`, and named when memory really ran out."""

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nanogpt.config import ModelConfig, TrainConfig, divisors
from nanogpt.data.batches import Batch
from nanogpt.device import Compute
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.estimates.memory import estimate_training_memory
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import signature, to_json
from nanogpt.training import auto_batch_size, loop
from nanogpt.training.run import train
from nanogpt.training.state import TrainState
from nanogpt.training.step import PendingStep
from tests import ranks

Build = Callable[..., TrainConfig]
CPU = Compute(torch.device("cpu"), "fp32", "a processor")
ROOT = Path(__file__).parents[2]


def free_for(model: ModelConfig, sequences: int, ranks: int = 1) -> int:
    """Return the memory that ranks which run already still need for micro-batches of `sequences`."""
    memory = estimate_training_memory(model, "fp32", sequences)
    return memory.host_bytes(ranks) - ranks * memory.process


def test_auto_on_a_cpu_is_what_null_means_unless_memory_is_short(
    config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = config(**{"hardware.micro_batch_size": "auto"})
    model = built.model.with_vocab(50)
    assert auto_batch_size.resolve_micro_batch_size(built, model, CPU, ProcessGroup(), 1).hardware.micro_batch_size == 8
    for sequences in (1, 2, 4, 8):
        monkeypatch.setattr(auto_batch_size, "available_bytes", lambda n=sequences: free_for(model, n))
        assert (
            auto_batch_size.resolve_micro_batch_size(built, model, CPU, ProcessGroup(), 1).hardware.micro_batch_size
            == sequences
        )
    monkeypatch.setattr(auto_batch_size, "available_bytes", lambda: free_for(model, 2, 2))
    assert (
        auto_batch_size.resolve_micro_batch_size(built, model, CPU, ProcessGroup(), 2).hardware.micro_batch_size == 2
    ), "two ranks share"


@pytest.mark.parametrize("world", [1, 2])
def test_auto_is_the_same_run(config: Build, world: int, tmp_path: Path) -> None:
    """It has the same signature, continues the same folder, and with the size it finds gives the same bytes."""
    auto = config(**{"hardware.micro_batch_size": "auto"})
    assert signature(auto) == signature(config())
    codes, output = ranks.run(auto, world)
    assert codes == [0] * world, output
    other = config(runs_dir=str(tmp_path / "other"))
    assert ranks.run(other, world)[0] == [0] * world
    assert ranks.result(auto) == ranks.result(other)
    assert RunDirectory(locate_run(auto)).read_config().hardware.micro_batch_size == 8 // world
    assert ranks.run(config(), world)[1].count("finished already") == 1


def test_bisection_finds_the_largest_that_fits(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    built = config(**{"training.batch_tokens": 16 * 360})
    for largest in (0, 1, 7, 8, 100, 360, 1000):

        def limited(_: object, model: object, compute: object, sequences: int, most: int = largest) -> None:
            if sequences > most:
                raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(auto_batch_size.gc, "collect", lambda: 0)  # half a second each
        monkeypatch.setattr(auto_batch_size, "run_micro_batch", limited)
        expected = max((n for n in divisors(360) if n <= largest), default=None)
        assert auto_batch_size.find_largest_by_trial(built, built.model.with_vocab(50), CPU, divisors(360)) == expected


@pytest.mark.parametrize("largest", [0, 8])
def test_the_program_that_is_trained_is_tried(config: Build, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Compiled, a model may need more than as it is written: sizes above `largest` fail, as it is written above 40."""
    built = config(**{"training.batch_tokens": 16 * 360, "hardware.compile": True})
    compiled: dict[int, bool] = {}

    def limited(forward: object, model: object, compute: object, sequences: int) -> None:
        if not isinstance(forward, GPT):
            compiled[sequences] = sequences <= largest
        if sequences > (40 if isinstance(forward, GPT) else largest):
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(auto_batch_size.gc, "collect", lambda: 0)
    monkeypatch.setattr(auto_batch_size, "run_micro_batch", limited)
    compute = replace(CPU, compiles=True)
    found = auto_batch_size.find_largest_by_trial(built, built.model.with_vocab(50), compute, divisors(360))
    assert found == max((n for n in divisors(360) if n <= min(40, largest)), default=None)
    assert found is None or compiled[found], "what is advised was tried"


def test_auto_stops_growing_where_nothing_is_gained(config: Build) -> None:
    built = config(**{"training.batch_tokens": 16 * 2**14, "hardware.micro_batch_size": "auto"})
    assert built.auto_micro_batch_sizes(1) == [2**n for n in range(13)] and built.auto_micro_batch_sizes(8)[-1] == 2048


def test_a_micro_batch_that_does_not_fit_after_all_gets_smaller(
    config: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Memory runs out in the run's sixth step, above two sequences; it goes on from its checkpoint with two."""
    auto, real, calls = config(**{"hardware.micro_batch_size": "auto"}), loop.train_step, [0]

    def limited(state: TrainState, batches: Iterable[Batch], built: TrainConfig) -> PendingStep:
        calls[0] += 1
        if calls[0] > 5 and built.micro_batch_size() > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(state, batches, built)

    monkeypatch.setattr(loop, "train_step", limited)
    assert train(auto) == 0
    said = capsys.readouterr().out
    assert re.findall(r"micro_batch_size=auto: (\d) did not fit after all; going on with a smaller one", said) == [
        "8",
        "4",
    ]
    run = RunDirectory(locate_run(auto))
    assert run.read_config().hardware.micro_batch_size == 2
    assert [start["arithmetic"]["micro_batch_size"] for start in run.read_starts()] == [8, 4, 2]
    assert [start["from_step"] for start in run.read_starts()] == [0, 5, 5]


def test_the_training_state_is_freed_before_the_group_is_closed(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a reducer of gradients destroys torch's group, and one of a hundred trainings hangs there with gloo."""
    real, close, states, alive = loop.train_step, ProcessGroup.close, list[weakref.ref[TrainState]](), list[int]()

    def limited(state: TrainState, batches: Iterable[Batch], built: TrainConfig) -> PendingStep:
        states.append(weakref.ref(state))
        if len(states) > 5 and built.micro_batch_size() > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(state, batches, built)

    def close_as_one_of_two(group: ProcessGroup) -> None:
        group.world = 2
        close(group)

    monkeypatch.setattr(loop, "train_step", limited)
    monkeypatch.setattr(ProcessGroup, "close", close_as_one_of_two)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(
        dist, "destroy_process_group", lambda: alive.append(sum(state() is not None for state in states))
    )
    assert train(config(**{"hardware.micro_batch_size": "auto"})) == 0
    assert alive == [0, 0] and len(states) > 20, "once after it did not fit, and once at the end"


@pytest.mark.slow
def test_all_ranks_go_on_with_less_when_one_has_too_little(config: Build, tmp_path: Path) -> None:
    """Rank 1 alone can't hold the micro-batch of the rehearsal; the run is then that of the next smaller one."""
    auto = config(**{"hardware.micro_batch_size": "auto"})
    faults = [
        ranks.Fault("nanogpt.training.auto_batch_size.needs_fit_check", 1, "true", None),
        ranks.Fault("nanogpt.training.auto_batch_size.fits_in_memory", 1, "false", 1),
    ]
    codes, output = ranks.run(auto, 2, faults)
    assert codes == [0, 0], output
    assert output.count("micro_batch_size=auto: 4 did not fit after all") == 1
    other = config(**{"runs_dir": str(tmp_path / "other"), "hardware.micro_batch_size": 2})
    assert ranks.run(other, 2)[0] == [0, 0]
    assert ranks.result(auto) == ranks.result(other)


def test_only_a_lack_of_memory_is_one(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(auto_batch_size, "run_micro_batch", broken)
    with pytest.raises(RuntimeError, match="something else"):
        auto_batch_size.find_largest_by_trial(config(), config().model.with_vocab(50), CPU, [1, 2])


LIMITED = """
import json, resource, sys
from cli.entry import exit_on_error
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.training.run import train  # what torch itself maps comes before the limit
import nanogpt.tracking.plots, torch._dynamo
config = schema.from_dict(TrainConfig, json.loads(sys.argv[1]))
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
exit_on_error("train", lambda: train(config))
"""


def train_within(config: TrainConfig, megabytes: int) -> "subprocess.CompletedProcess[str]":
    """A training in a process that gets so much more address space than it has at its start."""
    command = [sys.executable, "-c", LIMITED, to_json(config), str(megabytes * 2**20)]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # else each thread reserves 64 MB that it doesn't use
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


BIG: dict[str, object] = {
    "model.n_layer": 4,
    "model.n_embd": 128,
    "model.n_head": 4,
    "model.block_size": 64,
    "model.dropout": 0.0,
    "training.batch_tokens": 64 * 512,
    "training.steps": 1,
    "eval.train": False,
    "tracking.sample_tokens": 0,
    "hardware.micro_batch_size": 512,
}


@pytest.mark.slow
def test_out_of_memory_names_the_largest_micro_batch_that_fits(config: Build) -> None:
    """The allocator really fails; what the error names then really trains, within the same limit, to the same end."""
    done = train_within(config(**BIG), 600)
    assert done.returncode == 5, done.stderr
    named = re.fullmatch(
        r"error: hardware.micro_batch_size=512: out of memory; the largest that fits here is "
        r"hardware.micro_batch_size=(\d+) \(the loss curve doesn't change\)\n",
        done.stderr,
    )
    assert named, done.stderr
    size = int(named[1])
    model = config(**BIG).model.with_vocab(50)
    assert 32 <= size < 512 and free_for(model, size) < 600 * 2**20, "at most what the limit is"
    again = train_within(config(**BIG | {"hardware.micro_batch_size": size}), 600)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_out_of_memory_says_when_nothing_fits(config: Build) -> None:
    wide = BIG | {"model.n_embd": 1024, "model.n_layer": 6}
    done = train_within(config(**wide), 900)
    assert done.returncode == 5, done.stderr
    assert re.fullmatch(
        r"error: hardware.micro_batch_size=512: out of memory; not even 1 fits: the model needs 1.21GB for weights, "
        r"gradients and optimizer state, and [\d.]+MB for one sequence\n",
        done.stderr,
    ), done.stderr


@pytest.mark.gpu
@pytest.mark.null_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_on_a_gpu_is_found_by_trying(config: Build) -> None:
    on_gpu = {"hardware.device": "cuda", "hardware.attention": "flash"}  # the null GPU has no cuDNN
    built = config(**BIG | on_gpu | {"hardware.micro_batch_size": "auto", "tracking.sample_tokens": 0})
    assert train(built) == 0
    assert RunDirectory(locate_run(built)).read_config().hardware.micro_batch_size == 512


@pytest.mark.slow
def test_a_run_continues_with_its_own_micro_batch(
    config: Build, undisturbed: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little memory is free at the second start; to the bits of a run that was never stopped."""
    auto = {"hardware.micro_batch_size": "auto"}
    assert train(config(**auto, stop_at_fraction=0.5)) == 0
    monkeypatch.setattr(auto_batch_size, "available_bytes", lambda: 1)
    assert train(config(**auto)) == 0
    assert ranks.result(config(**auto)) == undisturbed()
    facts = RunDirectory(locate_run(config())).read_starts()[-1]["arithmetic"]
    assert facts["micro_batch_size"] == 8
    assert train(config(**auto, new_attempt=True)) == 0
    assert RunDirectory(locate_run(config())).read_starts()[-1]["arithmetic"]["micro_batch_size"] == 1
