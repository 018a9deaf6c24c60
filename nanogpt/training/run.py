"""A training run from config to exit code, on one rank of it: device, peers, data, model, run directory, loop."""

import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig, check_warmup_fits
from nanogpt.console import say, silence
from nanogpt.data.batches import TrainBatches
from nanogpt.data.dataset import Dataset
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import Compute, set_up
from nanogpt.device_errors import as_device_error
from nanogpt.distributed.env import Place, place_from
from nanogpt.distributed.process_group import ProcessGroup, meet
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.distributed.watchdog import Watch, watched
from nanogpt.errors import STOPPED, Diverged
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.evaluation.tasks import Benchmark, Evaluations, TaskEvaluation, fingerprint, load_benchmark
from nanogpt.files import write_atomic
from nanogpt.generation.start_tokens import find_start_ids
from nanogpt.gpus import Facts, choose_gpu, describe_self
from nanogpt.interop.load_weights import load_initial_weights
from nanogpt.measurement import KEY
from nanogpt.provenance import code_digest, collect_provenance
from nanogpt.run_directory import RunDirectory, opened
from nanogpt.tracking.trackers import check_trackers
from nanogpt.training.auto_batch_size import (
    DidNotFit,
    advice,
    free_all,
    naming_size,
    out_of_memory,
    rehearse,
    settled,
)
from nanogpt.training.auto_choices import keep_micro_batch
from nanogpt.training.dry_run import show_plan
from nanogpt.training.loop import Loop
from nanogpt.training.nonfinite import replay
from nanogpt.training.related_runs import describe_later_changes
from nanogpt.training.restore import restore, start_measurement
from nanogpt.training.run_logger import Record
from nanogpt.training.state import TrainState, build_state, is_compiled, settle_buckets
from nanogpt.training.summary import conclude, introduce
from nanogpt.training.validation import (
    check_places,
    expected_model,
    model_for,
    refuse_ranks,
    refuse_shorter,
    refuse_too_large,
    warn_of_short_shards,
    with_identity,
)


def train(config: TrainConfig) -> int:
    """Train to the end (0), or until somebody asks to stop (85). The same config again continues or says it's done.

    With RANK and its like in the environment (torchrun) this is one rank of several. Raises a LabError for everything
    that was foreseen; what is on disk is then what it was, or more.
    """
    if config.replay is not None:
        return replay(config)
    place = place_from(os.environ)
    silence(place.rank > 0)
    if config.dry_run:
        return show_plan(config, place)
    too_large: int | None = None
    while True:
        failed: DidNotFit | None = None
        try:
            return train_on(config, place, too_large)
        except DidNotFit as error:
            failed = DidNotFit(error.sequences, error.everywhere)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                if known := as_device_error(error):
                    raise known from error
                raise
        # Out of the handler, whose error holds on to everything that the training had in memory.
        too_large = recover(config, place, failed)


def recover(config: TrainConfig, place: Place, failed: DidNotFit | None) -> int:
    """After a training ran out of memory, return the micro-batch below which `auto` chooses again. Raises
    BadEnvironment if it wasn't `auto`'s, or other ranks may not know: then it names one that fits.
    """
    compute = set_up(config.hardware, place.local_rank, place.local_world)
    if failed is None or not failed.everywhere:
        tried = config.with_micro_batch_size(failed.sequences) if failed else config
        raise advice(tried, expected_model(config)[0], compute, place.world)
    free_all(compute)
    size = f"hardware.micro_batch_size=auto: {failed.sequences} did not fit after all"
    say(f"warning: {size}; going on with a smaller one (the loss curve doesn't change)")
    return failed.sequences


def train_on(config: TrainConfig, place: Place, too_large: int | None = None) -> int:
    """`train`, on one of the ranks. Raises DidNotFit for a micro-batch that `auto` chose, below `too_large`."""
    hardware = config.hardware
    compute, peers = meet(
        place,
        hardware.timeout,
        lambda facts: device_of(config, place, facts),
        lambda: describe_self(hardware.device, place),
    )
    with watched(peers, compute.device, hardware.timeout) as watch:
        try:
            return train_with(config, compute, peers, watch, too_large)
        except DidNotFit as error:
            if error.everywhere:
                peers.close()
            raise


def device_of(config: TrainConfig, place: Place, facts: Sequence[Facts]) -> Compute:
    """Return what this rank computes on, given what all ranks told of theirs. Raises LabError."""
    refuse_ranks(config, place)
    gpu = choose_gpu(facts, place) if facts else None
    return set_up(config.hardware, place.local_rank, place.local_world, gpu=gpu)


def train_with(
    config: TrainConfig, compute: Compute, peers: ProcessGroup, watch: Watch, too_large: int | None = None
) -> int:
    """`train`, once the ranks have met."""
    state = None
    try:
        with peers.alike():
            peers.refuse_differences("code", {"sha256": code_digest(), "torch": str(torch.__version__)})
            peers.refuse_differences("config", dict(schema.iter_values(config)))
            check_places(config)
        config = with_identity(config, peers)
        with peers.alike():
            refuse_too_large(config, compute, peers.world)
        if later := peers.from_leader(lambda: describe_later_changes(config)):
            watch.end()
            say(later)
            return 0
        peers.from_leader(lambda: check_trackers(config.tracking))
        dataset = peers.leader_first(lambda: prepare_if_small(config.data, config.model.block_size))
        benchmarks = peers.leader_first(lambda: benchmarks_of(config))
        with peers.alike():
            peers.refuse_differences("data set", {"fingerprint": dataset.fingerprint})
            peers.refuse_differences("benchmark", {one.name: fingerprint(one) for one in benchmarks})
            model = model_for(config, dataset)
            if too_large is None:
                config = keep_micro_batch(config, compute, peers, peers.world)
            config = settled(config, model, compute, peers, peers.world, too_large)
            state = build_state(config, model, compute, peers)
            schema.run_check(lambda: check_warmup_fits(config, state.steps))
        peers.leader_first(lambda: load_initial_weights(config, state.model, dataset.tokenizer))
        with naming_size(config, compute, everywhere=False):
            return train_state(config, state, dataset, benchmarks, watch)
    except RuntimeError as error:
        raise peers.explain(error, state.step if state else 0) from error


def benchmarks_of(config: TrainConfig) -> list[Benchmark]:
    """The documents of training.eval_tasks. Raises BadData, BadEnvironment."""
    settings = config.training
    return [load_benchmark(name, config.eval, settings.eval_limit) for name in dict.fromkeys(settings.eval_tasks)]


def train_state(
    config: TrainConfig, state: TrainState, dataset: Dataset, benchmarks: list[Benchmark], watch: Watch
) -> int:
    """`train`, once everything is built: restore, loop, report."""
    peers, device = state.peers, state.compute.device
    with peers.alike():
        batches = TrainBatches(dataset.train, config, device, peers.rank, peers.world)
        loss = LossEvaluation(dataset, config.eval, config.model.block_size, state.compute, peers)
        tasks = [TaskEvaluation(one, dataset.tokenizer, state.compute, peers) for one in benchmarks]
        evaluate = Evaluations(loss, tasks)
    warn_of_short_shards(batches, dataset)
    with directory(config, peers) as (path, run), StopFlag() as flag, closing(batches):
        restored = restore(state, dataset, run, config)
        with peers.alike():
            refuse_shorter(config, state)
        done = restored and is_done(config, state)
        if run:
            introduce(config, state, dataset, loss, run, done)
        peers.agree(0)  # nobody leaves, or waits, before the leader has read and written all it must
        if done:
            watch.end()
            if run:
                say_done(config, state, run)
            return 0
        rehearse(config, state)
        start_measurement(state, loss, dataset, config)
        record = begin(config, state, dataset, run, watch) if run else None
        watch.arm(
            flag,
            path,
            config.hardware.timeout,
            config.checkpoint.stop_timeout_s,
            is_compiled(config.hardware, state.compute),
        )
        with reporting(record, watch, flag):
            if config.tracking.required:
                peers.from_leader(lambda: record.wait_for_trackers() if record else None)
            settle_buckets(state, batches.read_batch(batches.first_samples(state.samples)[0]))
            saved = (state.step, state.evaluated) if restored else None
            loop = Loop(config, state, batches, evaluate, record, flag, watch, saved)
            finished = loop.run()
        if record:
            outcome = "stopped" if not finished else "finished" if state.step == state.steps else "paused"
            record.status(outcome)
            if outcome == "finished":
                conclude(config, state, record.run)
            else:
                farewell(config, record, flag, loop.agreed)
            finish_trackers(record, flag, outcome)
        return 0 if finished else STOPPED


def is_done(config: TrainConfig, state: TrainState) -> bool:
    """Whether a restored run has nothing left to do before its end, or where it shall pause."""
    goal = config.last_step(state.steps)
    return state.step > goal or (state.step == goal and state.evaluated == goal)


def say_done(config: TrainConfig, state: TrainState, run: RunDirectory) -> None:
    """What the same command says then; status.json may have been lost."""
    outcome = "paused" if state.step < state.steps else "finished"
    if run.status().get("state") != outcome:
        run.write_status(outcome, step=state.step, steps=state.steps, best=state.best)
    if outcome == "paused":
        say(f"paused already, at step {state.step} of {state.steps}; stop_at_fraction=null goes on")
        return
    say(f"finished already, at step {state.step}; new_attempt=true trains it again beside this one")
    conclude(config, state, run)


@contextmanager
def directory(config: TrainConfig, peers: ProcessGroup) -> Generator[tuple[Path, RunDirectory | None], None, None]:
    """Where the run is, on all ranks; and the run directory itself, locked, on the leader."""
    with ExitStack() as stack:
        mine: list[RunDirectory] = []

        def enter() -> str:
            mine.append(stack.enter_context(opened(config)))
            return str(mine[0].path)

        yield Path(peers.from_leader(enter)), mine[0] if mine else None


def begin(config: TrainConfig, state: TrainState, dataset: Dataset, run: RunDirectory, watch: Watch) -> Record:
    """Note this start in the run directory."""
    write_atomic(run.path / tokenizers.FILE, tokenizers.to_json(dataset.tokenizer))
    if (fruitless := run.fruitless_starts(state.step)) >= 2:
        say(
            f"warning: the last {fruitless} starts all ended at step {state.step} without a new checkpoint; see log.txt"
        )
    if (starts := run.starts()) and starts[-1].get("code") != code_digest():
        say("warning: the code of nanogpt/ has changed since the last start; provenance.json has both states")
    about = {"from_step": state.step, "evaluated": state.evaluated, "data": dataset.fingerprint}
    about |= {"arithmetic": state.arithmetic, KEY: state.measurement}
    start = find_start_ids(dataset.tokenizer, dataset.train)
    about |= {"train_tokens": dataset.train.n_tokens, "start_ids": start}
    notes = {"notes": run.notes} if run.notes else {}
    parent = run.origin.forked_from if run.origin and run.new_fork else None
    lineage = {"forked_from": parent.model_dump()} if parent else {}
    run.add_start(collect_provenance(state.compute.name) | about | {"changes": run.changes} | notes | lineage)
    if run.changes:
        write_atomic(run.path / "config.json", schema.to_json(config))
    counted = "train_tokens" in run.starts()[0]  # rows of a run from before this was recorded stay as they were
    record = Record(
        config, run, state, dataset.tokenizer, watch.beat, start, dataset.train.n_tokens if counted else None
    )
    record.status("running")
    return record


@contextmanager
def reporting(record: Record | None, watch: Watch, flag: StopFlag) -> Generator[None, None, None]:
    """Whatever ends the loop, the writer is done, the bar is closed, and an error is in status.json and the log."""
    failed = ""
    try:
        yield
    except Exception as error:
        failed = "diverged" if isinstance(error, Diverged) else "failed"
        if record:
            record.status(failed)
            record.log(f"{type(error).__name__}: {error}")
        raise
    finally:
        watch.end()
        if record:
            record.saver.close()
            record.steps.close()
            if failed:
                finish_trackers(record, flag, failed)


def finish_trackers(record: Record, flag: StopFlag, state: str) -> None:
    """Upload what trackers lack within tracking.timeout and checkpoint.stop_timeout_s; a second signal ends it."""
    before, config = flag.level, record.config
    left = config.tracking.timeout
    if before:
        left = min(left, flag.first + config.checkpoint.stop_timeout_s - time.monotonic()) if before < Stop.NOW else 1.0
    record.trackers.finish(state, left, lambda: flag.level > before)


def farewell(config: TrainConfig, record: Record, flag: StopFlag, agreed: Stop) -> None:
    """Why it stopped, and how it goes on."""
    step, steps = record.state.step, record.run.checkpoints.steps()
    if not agreed:
        say(f"paused at step {step} of {record.state.steps}, all saved; stop_at_fraction=null goes on")
        return
    again = "the same command without new_attempt=true" if config.new_attempt else "the same command"
    reason = flag.reason or "a signal to another rank"
    if agreed < Stop.NOW or step in steps:
        say(f"{reason}: stopped at step {step}, all saved; {again} continues")
    else:
        where = f"continues at step {steps[-1]}" if steps else "starts anew"
        say(f"{reason} twice: stopped at step {step} without saving; {again} {where}")
