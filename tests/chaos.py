"""A fuzzer of faults: `python -m tests.chaos --runs 200 --seed 1`.

Each run is a training on 1 to 4 ranks that is started several times, and every time something drawn at random happens
to it at a random moment; between the starts its newest checkpoint may be damaged. Then the same command runs alone, and
must end with the bytes of an undisturbed training. A failure prints the number that repeats it: `--only N`.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nanogpt.config import TrainConfig
from nanogpt.run_directory import RunDirectory, locate_run
from tests import ranks
from tests.ranks import Fault, Started
from tests.tiny_config import tiny_config, write_corpus

SETTINGS = {"training.batch_tokens": 12 * 16, "hardware.timeout": 10.0}  # 12 sequences, for 1 to 4 ranks
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
EVERYWHERE = {  # function of every rank -> how often it is called in an undisturbed run, about
    "nanogpt.training.run.build_state": 1,
    "nanogpt.training.restore.load_checkpoint": 1,
    "nanogpt.training.loop.train_step": 20,
    "nanogpt.training.loop.record_results": 5,
    "nanogpt.evaluation.loss.LossEvaluation.evaluate_split": 10,
}
ON_RANK0 = {  # function of rank 0 -> the same
    "nanogpt.training.run_logger.RunLogger.log_evaluation": 5,
    "nanogpt.training.async_checkpoint.AsyncCheckpointer.save": 8,
    "nanogpt.metrics_file.RowLog.append": 30,
    "nanogpt.metrics_file.RowLog.rewind": 2,
    "nanogpt.metrics_file.RowLog.sync": 8,
    "nanogpt.checkpoint.write_tensors": 16,
    "nanogpt.checkpoint.write_file": 16,
    "nanogpt.checkpoint.fsync": 16,
    "nanogpt.checkpoint.Checkpoints.prune": 8,
    "nanogpt.checkpoint.Checkpoints.clean": 1,
    "nanogpt.files.write_atomic": 3,
}
FINE = {0, 7, 85, 130, -signal.SIGKILL, *(-getattr(signal, name) for name in SIGNALS)}
"""Exit codes of a rank that was killed, stopped, or whose peer was."""


def plan(draw: random.Random, world: int) -> tuple[str, list[Fault], Callable[[Started], None]]:
    """(in words, what is planted inside, what is done from outside) of one start."""
    rows, rank = draw.randrange(1, 14), draw.randrange(world)
    place, often = draw.choice(sorted((EVERYWHERE | ON_RANK0).items()))
    call, after = draw.randint(1, often), draw.random() < 0.5
    name = draw.choice(SIGNALS)

    def outside(*signals: str, to: tuple[int, ...] = (), pause: float = 0.0) -> Callable[[Started], None]:
        def act(started: Started) -> None:
            started.until_rows(rows)
            for one in signals:
                started.send(signal.Signals[one], *to)
                time.sleep(pause)

        return act

    kind = draw.choice(
        ["kill", "kill one", "signal", "signal all", "two signals", "inside", "inside", "inside", "stop"]
    )
    if kind == "kill":
        return f"kill -9 of all after {rows} rows", [], outside("SIGKILL")
    if kind == "kill one":
        return f"kill -9 of rank {rank} after {rows} rows", [], outside("SIGKILL", to=(rank,))
    if kind == "signal":
        return f"{name} to rank {rank} after {rows} rows", [], outside(name, to=(rank,))
    if kind == "signal all":
        return f"{name} to all after {rows} rows", [], outside(name)
    if kind == "two signals":
        pause = draw.choice([0.0, 0.02, 0.2])
        return f"{name}, SIGTERM {pause} s later, after {rows} rows", [], outside(name, "SIGTERM", pause=pause)
    if kind == "stop":
        first = f"rank {rank} stopped after {rows} rows, then all told to end and killed"

        def stop(started: Started) -> None:
            started.until_rows(rows)
            started.send(signal.SIGSTOP, rank)
            time.sleep(0.2)
            started.send(signal.SIGTERM)
            time.sleep(0.2)
            started.send(signal.SIGKILL)

        return first, [], stop
    action = draw.choice(["SIGKILL", "SIGKILL", name])
    where = f"{'after' if after else 'before'} call {call} of {place}"
    rank = 0 if place in ON_RANK0 else rank
    return f"{action} in rank {rank} {where}", [Fault(place, call, action, rank, after)], lambda _: None


def damage(draw: random.Random, run: RunDirectory) -> str:
    """Hurt the newest checkpoint, when there is another one and it isn't hurt already."""
    steps = run.checkpoints.steps()
    if len(steps) < 2 or run.checkpoints.load_newest()[1] or draw.random() < 0.5:
        return ""
    file = draw.choice(sorted(run.checkpoints.path(steps[-1]).iterdir()))
    kind = draw.choice(["flip", "cut", "remove"])
    if kind == "flip":
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    elif kind == "cut":
        os.truncate(file, draw.randrange(file.stat().st_size))
    else:
        file.unlink()
    return f"; {kind} {file.parent.name}/{file.name}"


def check(good: bool, what: str, story: list[str]) -> None:
    if not good:
        raise AssertionError("\n  ".join([what, *story]))


def disturbed(config: TrainConfig, world: int, draw: random.Random, story: list[str]) -> None:
    """A few starts with faults. Raises AssertionError when an invariant doesn't hold after one."""
    for _ in range(draw.randint(1, 4)):
        words, faults, act = plan(draw, world)
        started = Started(config, world, faults)
        act(started)
        codes = started.wait()
        story.append(f"{words}: {codes}")
        outputs = "\n".join(started.output(rank) for rank in range(world))
        check(set(codes) <= FINE, f"unexpected exit codes\n{outputs[-3000:]}", story)
        check("Traceback" not in outputs, f"a traceback\n{outputs[-3000:]}", story)
        run = RunDirectory(locate_run(config))
        check(bool(run.checkpoints.steps()) or not run.checkpoints.mark.exists(), "all checkpoints are gone", story)
        if run.checkpoints.steps():
            _, bad = run.checkpoints.load_newest()
            hurt = [words for words in story if str(bad[0]).partition("step-")[2][:8] in words] if bad else []
            check(not bad or bool(hurt), f"a checkpoint is not whole, and nobody hurt it: {bad}", story)
            story[-1] += damage(draw, run)


def one(seed: int, number: int, references: dict[int, dict[str, str]]) -> list[str]:
    """One run. Returns its story; raises AssertionError with it."""
    draw = random.Random(f"{seed}/{number}")
    world = draw.choice([1, 2, 3, 4])
    story = [f"--seed {seed} --only {number}: {world} ranks"]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        config = tiny_config(folder, write_corpus(folder / "corpus.txt"), **SETTINGS)
        if world not in references:
            quiet = config.model_copy(update={"runs_dir": str(folder / "undisturbed")})
            codes, output = ranks.run(quiet, world)
            check(codes == [0] * world, output, story)
            references[world] = ranks.result(quiet)
        disturbed(config, world, draw, story)
        checkpoints = RunDirectory(locate_run(config)).checkpoints
        loaded = checkpoints.load_newest()[0] if checkpoints.steps() else None
        codes, output = ranks.run(config, world)
        starts = RunDirectory(locate_run(config)).read_starts()
        continued = loaded is None or loaded.state["step"] in (20, starts[-1]["from_step"])
        check(continued, "it didn't continue from its newest good checkpoint", story)
        check(codes == [0] * world, f"the last start ended with {codes}\n{output[-3000:]}", story)
        found = ranks.result(config)
        differing = [name for name in references[world] if found.get(name) != references[world][name]]
        check(not differing, f"not as if nothing had happened: {', '.join(differing)}", story)
    return story


def main() -> int:
    """Run the fuzzer from the command line; 1 when an invariant was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="repeat this one run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this time")
    settings = parser.parse_args()
    references: dict[int, dict[str, str]] = {}
    numbers = range(settings.runs) if settings.only is None else [settings.only]
    begun, failures, done = time.monotonic(), 0, 0
    for number in numbers:
        if time.monotonic() - begun > settings.seconds:
            break
        done += 1
        try:
            story = one(settings.seed, number, references)
            print(f"{number}: ok, {'; '.join(story[1:])}", flush=True)
        except AssertionError as error:
            failures += 1
            print(f"{number}: FAILED {error}", flush=True)
    print(f"{done} runs, {failures} failed, {time.monotonic() - begun:.0f} s, --seed {settings.seed}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
