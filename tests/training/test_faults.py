"""Faults that really happen to real processes, and the promise: the same command then ends as if nothing had happened.

After every fault the same command runs to its end; the weights, the optimizer's state, metrics.jsonl and the samples
are the bytes of an undisturbed run.
"""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import TrainConfig
from nanogpt.run_directory import RunDirectory, locate_run
from tests import ranks
from tests.ranks import Fault, Started, goes_on

Build = Callable[..., TrainConfig]
Reference = Callable[..., dict[str, str]]
SLOW = pytest.mark.slow


def a_good_checkpoint(config: TrainConfig) -> bool:
    """Whether the newest checkpoint verifies, or there never was one."""
    loaded, bad = RunDirectory(locate_run(config)).checkpoints.load_newest()
    return not bad and (loaded is not None or not list(locate_run(config).glob("checkpoints/*step*")))


@pytest.mark.parametrize(
    ("world", "moment"), [(1, 7), (2, 9), *(pytest.param(*case, marks=SLOW) for case in ((1, 2), (1, 12), (4, 11)))]
)
def test_f01_kill_9_of_all(config: Build, undisturbed: Reference, world: int, moment: int) -> None:
    started = Started(config(), world).until_rows(moment)
    started.send(signal.SIGKILL)
    assert set(started.wait()) == {-signal.SIGKILL}, "it was still running"
    assert a_good_checkpoint(config())
    goes_on(config(), undisturbed, world)


SAVE = [  # (function, the call that belongs to the second save, after it)
    ("nanogpt.metrics_file.RowLog.sync", 2, False),
    pytest.param("nanogpt.checkpoint.check_disk_space", 2, False, marks=SLOW),
    pytest.param("nanogpt.checkpoint.write_tensors", 3, False, marks=SLOW),
    pytest.param("nanogpt.checkpoint.write_tensors", 3, True, marks=SLOW),
    pytest.param("nanogpt.checkpoint.write_tensors", 4, True, marks=SLOW),
    ("nanogpt.checkpoint.write_file", 3, True),
    pytest.param("nanogpt.checkpoint.write_file", 4, True, marks=SLOW),
    pytest.param("nanogpt.checkpoint.fsync", 3, True, marks=SLOW),
    ("nanogpt.checkpoint.fsync", 4, False),
    pytest.param("nanogpt.checkpoint.fsync", 4, True, marks=SLOW),
    pytest.param("nanogpt.checkpoint.Checkpoints.prune", 3, False, marks=SLOW),
    ("nanogpt.checkpoint.Checkpoints.prune", 3, True),
]


@pytest.mark.parametrize(("target", "call", "after"), SAVE)
def test_f02_kill_9_inside_a_save(config: Build, undisturbed: Reference, target: str, call: int, after: bool) -> None:
    codes, _ = ranks.run(config(), 1, [Fault(target, call, "SIGKILL", after=after)])
    assert codes == [-signal.SIGKILL]
    assert a_good_checkpoint(config())
    goes_on(config(), undisturbed)


@pytest.mark.parametrize(("world", "victim"), [(2, 0), (2, 1), pytest.param(4, 2, marks=SLOW)])
def test_f03_kill_9_of_one_rank(config: Build, undisturbed: Reference, world: int, victim: int) -> None:
    fault = Fault("nanogpt.training.loop.train_step", 7, "SIGKILL", victim)
    started = Started(config(), world, [fault])
    codes = started.wait()
    assert codes[victim] == -signal.SIGKILL
    assert {code for rank, code in enumerate(codes) if rank != victim} == {7}
    told = started.output(1 if victim == 0 else 0)
    assert "lost at step" in told and str(victim) in told.split("lost at step")[0][-12:]
    goes_on(config(), undisturbed, world)


@pytest.mark.parametrize(
    "name", ["SIGINT", "SIGUSR1", *(pytest.param(name, marks=SLOW) for name in ("SIGTERM", "SIGUSR2", "SIGHUP"))]
)
def test_f04_signals_stop_at_a_boundary(config: Build, undisturbed: Reference, name: str) -> None:
    codes, output = ranks.run(config(), 1, [Fault("nanogpt.training.loop.train_step", 7, name)])
    assert codes == [85]
    assert f"{name}: stopped at step 7, all saved; the same command continues" in output
    assert 7 in RunDirectory(locate_run(config())).checkpoints.steps()
    goes_on(config(), undisturbed)


@pytest.mark.parametrize(
    ("world", "receiver"), [(2, 1), pytest.param(2, None, marks=SLOW), pytest.param(4, 3, marks=SLOW)]
)
def test_f04_one_signal_stops_all_ranks(
    config: Build, undisturbed: Reference, world: int, receiver: int | None
) -> None:
    codes, output = ranks.run(config(), world, [Fault("nanogpt.training.loop.train_step", 7, "SIGTERM", receiver)])
    assert codes == [85] * world
    assert "stopped at step 7, all saved" in output
    goes_on(config(), undisturbed, world)


@pytest.mark.parametrize("number", [3, *(pytest.param(number, marks=SLOW) for number in (1, 2, 5, 9, 10))])
def test_f05_a_signal_during_an_evaluation(config: Build, undisturbed: Reference, number: int) -> None:
    """Cut between batches; also the first and the last one. Killed again in the next start it is still exact."""
    target = "nanogpt.evaluation.loss.LossEvaluation.evaluate_split"
    codes, output = ranks.run(config(), 1, [Fault(target, number, "SIGTERM")])
    assert codes == [85], output
    codes, _ = ranks.run(config(), 1, [Fault("nanogpt.training.loop.record_results", 2, "SIGKILL")])
    assert codes[0] in (-signal.SIGKILL, 0)
    goes_on(config(), undisturbed)


def test_f05_a_signal_during_an_evaluation_on_two_ranks(config: Build, undisturbed: Reference) -> None:
    target = "nanogpt.evaluation.loss.LossEvaluation.evaluate_split"
    assert ranks.run(config(), 2, [Fault(target, 5, "SIGUSR1", 1)])[0] == [85, 85]
    goes_on(config(), undisturbed, 2)


def test_f05_a_signal_during_a_save(config: Build, undisturbed: Reference) -> None:
    codes, _ = ranks.run(config(), 1, [Fault("nanogpt.checkpoint.write_tensors", 3, "SIGTERM")])
    assert codes == [85] and a_good_checkpoint(config())
    goes_on(config(), undisturbed)


def test_f05_a_signal_during_start_up(config: Build, undisturbed: Reference) -> None:
    codes, _ = ranks.run(config(), 1, [Fault("nanogpt.training.run.build_state", 1, "SIGTERM")])
    assert codes == [-signal.SIGTERM] and not locate_run(config()).exists()
    goes_on(config(), undisturbed)


def test_f05_a_signal_in_the_last_step_lets_the_run_finish(config: Build, undisturbed: Reference) -> None:
    codes, output = ranks.run(config(), 1, [Fault("nanogpt.training.loop.train_step", 20, "SIGTERM")])
    assert codes == [0], output
    assert ranks.result(config()) == undisturbed()


@pytest.mark.parametrize("world", [2, pytest.param(1, marks=SLOW)])
def test_f06_a_second_signal_skips_the_save(config: Build, undisturbed: Reference, world: int) -> None:
    fault = Fault("nanogpt.training.loop.train_step", 7, "SIGTERM+SIGINT", rank=world - 1)
    codes, output = ranks.run(config(), world, [fault])
    assert codes == [85] * world
    assert "twice: stopped at step 7 without saving; the same command continues at step 5" in output
    assert a_good_checkpoint(config())
    goes_on(config(), undisturbed, world)


def test_f06_the_same_signal_from_two_sides_is_one(config: Build, undisturbed: Reference) -> None:
    """A system that signals every process of a job reaches a rank itself and through the command that started it."""
    faults = [Fault("nanogpt.training.loop.train_step", 7, "SIGTERM") for _ in range(2)]
    codes, output = ranks.run(config(), 1, faults)
    assert codes == [85] and "stopped at step 7, all saved" in output
    goes_on(config(), undisturbed)


def test_f07_a_signal_while_stuck_in_a_collective(config: Build, undisturbed: Reference) -> None:
    """Rank 1 is stopped, rank 0 waits for it in C++ and is told to end: its watcher does, from the last checkpoint."""
    changes = {"checkpoint.stop_timeout_s": 1.0}
    started = Started(config(**changes), 2, [Fault("nanogpt.training.loop.train_step", 9, "SIGSTOP", 1)]).until_rows(6)
    started.until_stopped(1)
    started.send(signal.SIGTERM, 0)
    assert started.wait(0) == [85, None]
    pattern = r"was \d+ s ago and it isn't over at step 8; the same command continues"
    assert re.search(pattern, started.output()), started.output()
    assert "train_step" in (locate_run(config()) / "stacks-rank-0.txt").read_text()
    goes_on(config(), undisturbed, 2)


def test_f08_a_rank_that_hangs(config: Build, undisturbed: Reference) -> None:
    changes = {"hardware.timeout": 4.0}
    started = Started(config(**changes), 2, [Fault("nanogpt.training.loop.train_step", 9, "SIGSTOP", 1)])
    assert started.wait(0) == [7, None]
    assert "no rank got anywhere for" in started.output() and "one hangs or is lost" in started.output()
    goes_on(config(), undisturbed, 2)


def test_f25_one_directory_has_one_owner(config: Build, undisturbed: Reference) -> None:
    first = Started(config(), 1, [Fault("nanogpt.training.loop.train_step", 9, "SIGSTOP")]).until_rows(5)
    for world in (1, 2):
        codes, output = ranks.run(config(), world)
        assert codes == [75] * world
        assert f"process {first.ranks[0].pid} on " in output and "is training here" in output
    first.send(signal.SIGCONT)
    assert first.wait() == [0]
    assert ranks.result(config()) == undisturbed()


def test_f25_the_lock_dies_with_its_owner(config: Build, undisturbed: Reference) -> None:
    started = Started(config(), 2, [Fault("nanogpt.training.loop.train_step", 9, "SIGSTOP")]).until_rows(5)
    started.send(signal.SIGKILL)
    started.wait()
    goes_on(config(), undisturbed, 2)


def test_f41_the_reader_of_the_output_goes(config: Build, undisturbed: Reference) -> None:
    """Standard output is closed in the middle: nobody sees the lines, and nothing else happens."""
    codes, _ = ranks.run(config(), 1, [Fault("nanogpt.training.loop.train_step", 3, "broken pipe")])
    assert codes == [0]
    assert ranks.result(config()) == undisturbed()


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=SLOW)])
def test_f41_nothing_can_be_printed(config: Build, undisturbed: Reference, world: int) -> None:
    """A terminal that is gone, a log on a full disk: every print fails from the first on."""
    codes, _ = ranks.run(config(), world, [Fault("nanogpt.training.run.set_up_device", 1, "full output", None)])
    assert codes == [0] * world
    assert ranks.result(config()) == undisturbed(world)


@pytest.mark.slow
def test_a_slow_rank_0_is_waited_for(config: Build, undisturbed: Reference) -> None:
    """Rank 0 takes longer than hardware.timeout to draw a sample, token by token: nobody gives up on it."""
    changes = {"hardware.timeout": 6.0}
    slow = [Fault("nanogpt.generation.decode.next_token_probs", n, "sleep 2", 0) for n in (11, 12, 13, 14)]
    codes, output = ranks.run(config(**changes), 2, slow)
    assert codes == [0, 0], output
    assert ranks.result(config()) == undisturbed(2)


def test_f46_a_crash_loop_is_told(config: Build, undisturbed: Reference) -> None:
    """The same error every time keeps its exit code, and the third start says that nothing got further."""
    fault = [Fault("nanogpt.training.loop.train_step", 1, "oserror")]
    outputs = [ranks.run(config(), 1, fault) for _ in range(3)]
    assert [codes for codes, _ in outputs] == [[5]] * 3
    assert "without a new checkpoint" not in outputs[1][1]
    assert "the last 2 starts all ended at step 0 without a new checkpoint; see log.txt" in outputs[2][1]
    assert (locate_run(config()) / "log.txt").read_text().count("Input/output error") == 3
    goes_on(config(), undisturbed)


def test_f47_an_error_in_the_writer_costs_one_save(config: Build, undisturbed: Reference) -> None:
    codes, output = ranks.run(config(), 1, [Fault("nanogpt.checkpoint.write_tensors", 3, "oserror")])
    assert codes == [0]
    assert "can't be written: Input/output error; the older ones are intact (1 of 3 failures in a row" in output
    assert ranks.result(config()) == undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=SLOW)])
def test_f47_an_error_in_the_last_save_decides_the_exit_code(config: Build, undisturbed: Reference, world: int) -> None:
    built = config(**{"checkpoint.every": 1000, "eval.every": 1000})  # one save: two files of tensors
    codes, output = ranks.run(built, world, [Fault("nanogpt.checkpoint.write_tensors", 1, "oserror")])
    assert codes == [5] * world and "couldn't be written" in output
    assert ranks.run(built, world)[0] == [0] * world
    assert ranks.result(built) == undisturbed(world, **{"checkpoint.every": 1000, "eval.every": 1000})


@pytest.mark.slow
def test_f48_a_slow_writer_saves_the_state_it_was_given(config: Build, tmp_path: Path) -> None:
    """Training goes on while a checkpoint is written; what is written is the state of its own step."""
    slow, quick = (config(**{"checkpoint.keep": 100, "runs_dir": str(tmp_path / name)}) for name in ("slow", "quick"))
    codes, _ = ranks.run(slow, 1, [Fault("nanogpt.checkpoint.write_tensors", n, "sleep 1") for n in (1, 2, 5)])
    assert codes == [0] and ranks.run(quick)[0] == [0]
    files = [sorted(locate_run(built).glob("checkpoints/step-*/*.safetensors")) for built in (slow, quick)]
    assert len(files[0]) == len(files[1]) > 10
    for ours, theirs in zip(*files, strict=True):
        assert ours.parent.name == theirs.parent.name and ours.read_bytes() == theirs.read_bytes()
