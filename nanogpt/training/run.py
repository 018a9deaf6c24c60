"""A training run from config to exit code, on one rank of it: device, group, data, model, run directory, loop."""

import logging
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig, check_warmup_fits
from nanogpt.console import mute
from nanogpt.data.batches import TrainBatches
from nanogpt.data.dataset import Dataset
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import Compute, set_up_device
from nanogpt.device_errors import as_device_error
from nanogpt.distributed.env import RankEnv, read_rank_env
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.distributed.rendezvous import rendezvous
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.distributed.watchdog import Watchdog, join_with_watchdog
from nanogpt.errors import STOPPED, Diverged
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.evaluation.tasks import Benchmark, Evaluations, TaskEvaluation, fingerprint, load_benchmark
from nanogpt.files import write_atomic
from nanogpt.generation.start_tokens import find_start_ids
from nanogpt.gpus import RankReport, choose_gpu, report_gpus
from nanogpt.interop.load_weights import load_initial_weights
from nanogpt.measurement import KEY
from nanogpt.provenance import code_digest, collect_provenance
from nanogpt.run_directory import RunDirectory, open_run
from nanogpt.tracking.trackers import check_trackers
from nanogpt.training.auto_batch_size import (
    DidNotFit,
    check_micro_batch_fits,
    free_memory,
    is_out_of_memory,
    out_of_memory_error,
    raise_did_not_fit,
    resolve_micro_batch_size,
)
from nanogpt.training.auto_choices import reuse_micro_batch_size
from nanogpt.training.dry_run import print_plan
from nanogpt.training.loop import Loop
from nanogpt.training.nonfinite import replay_incident
from nanogpt.training.related_runs import describe_later_changes
from nanogpt.training.restore import record_measurement, restore
from nanogpt.training.run_logger import RunLogger
from nanogpt.training.state import TrainState, build_state, warm_up_ddp_buckets
from nanogpt.training.summary import print_already_done, print_results, print_run_header, print_stop_message
from nanogpt.training.validation import (
    check_horizon_ahead,
    check_paths,
    check_ranks,
    check_state_fits,
    expected_model,
    fit_model_to_data,
    resolve_identity,
    warn_of_short_shards,
)

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> int:
    """Train to the end (0), or until somebody asks to stop (85). The same config again continues or says it's done.

    With RANK and its like in the environment (torchrun) this is one rank of several. Raises a LabError for everything
    that was foreseen; what is on disk is then what it was, or more.
    """
    if config.replay is not None:
        return replay_incident(config)
    rank_env = read_rank_env(os.environ)
    mute(rank_env.rank > 0)
    if config.dry_run:
        return print_plan(config, rank_env)
    too_large: int | None = None
    while True:
        failed: DidNotFit | None = None
        try:
            return train_rank(config, rank_env, too_large)
        except DidNotFit as error:
            failed = DidNotFit(error.sequences, error.everywhere)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                if known := as_device_error(error):
                    raise known from error
                raise
        # Out of the handler, whose error holds on to everything that the training had in memory.
        too_large = handle_out_of_memory(config, rank_env, failed)


def handle_out_of_memory(config: TrainConfig, rank_env: RankEnv, failed: DidNotFit | None) -> int:
    """After a training ran out of memory, return the micro-batch below which `auto` chooses again. Raises
    BadEnvironment if it wasn't `auto`'s, or other ranks may not know: then it names one that fits.
    """
    compute = set_up_device(config.hardware, rank_env.local_rank, rank_env.local_world)
    if failed is None or not failed.everywhere:
        tried = config.with_micro_batch_size(failed.sequences) if failed else config
        raise out_of_memory_error(tried, expected_model(config)[0], compute, rank_env.world)
    free_memory(compute)
    size = f"hardware.micro_batch_size=auto: {failed.sequences} did not fit after all"
    logger.warning(f"{size}; going on with a smaller one (the loss curve doesn't change)")
    return failed.sequences


def train_rank(config: TrainConfig, rank_env: RankEnv, too_large: int | None = None) -> int:
    """`train`, on one of the ranks. Raises DidNotFit for a micro-batch that `auto` chose, below `too_large`."""
    hardware = config.hardware
    compute, group = rendezvous(
        rank_env,
        hardware.timeout,
        lambda facts: choose_device(config, rank_env, facts),
        lambda: report_gpus(hardware.device, rank_env),
    )
    with join_with_watchdog(group, compute.device, hardware.timeout) as watchdog:
        try:
            return setup_and_train(config, compute, group, watchdog, too_large)
        except DidNotFit as error:
            if error.everywhere:
                group.close()
            raise


def choose_device(config: TrainConfig, rank_env: RankEnv, facts: Sequence[RankReport]) -> Compute:
    """Return what this rank computes on, given what all ranks told of theirs. Raises LabError."""
    check_ranks(config, rank_env)
    gpu = choose_gpu(facts, rank_env) if facts else None
    return set_up_device(config.hardware, rank_env.local_rank, rank_env.local_world, gpu=gpu)


def setup_and_train(
    config: TrainConfig, compute: Compute, group: ProcessGroup, watchdog: Watchdog, too_large: int | None = None
) -> int:
    """`train`, once the ranks have met."""
    state = None
    try:
        with group.report_once():
            group.check_same_on_all_ranks("code", {"sha256": code_digest(), "torch": str(torch.__version__)})
            group.check_same_on_all_ranks("config", dict(schema.iter_values(config)))
            check_paths(config)
        config = resolve_identity(config, group)
        with group.report_once():
            check_state_fits(config, compute, group.world)
        if later := group.broadcast_from_rank0(lambda: describe_later_changes(config)):
            watchdog.stop()
            logger.info(later)
            return 0
        group.broadcast_from_rank0(lambda: check_trackers(config.tracking))
        dataset = group.rank0_first(lambda: prepare_if_small(config.data, config.model.block_size))
        benchmarks = group.rank0_first(lambda: load_benchmarks(config))
        with group.report_once():
            group.check_same_on_all_ranks("data set", {"fingerprint": dataset.fingerprint})
            group.check_same_on_all_ranks("benchmark", {one.name: fingerprint(one) for one in benchmarks})
            model = fit_model_to_data(config, dataset)
            if too_large is None:
                config = reuse_micro_batch_size(config, compute, group, group.world)
            config = resolve_micro_batch_size(config, model, compute, group, group.world, too_large)
            state = build_state(config, model, compute, group)
            schema.run_check(lambda: check_warmup_fits(config, state.total_steps))
        group.rank0_first(lambda: load_initial_weights(config, state.model, dataset.tokenizer))
        with raise_did_not_fit(config, compute, everywhere=False):
            return run_training(config, state, dataset, benchmarks, watchdog)
    except RuntimeError as error:
        raise group.to_peer_lost(error, state.step if state else 0) from error


def load_benchmarks(config: TrainConfig) -> list[Benchmark]:
    """The documents of training.eval_tasks. Raises BadData, BadEnvironment."""
    settings = config.training
    return [load_benchmark(name, config.eval, settings.eval_limit) for name in dict.fromkeys(settings.eval_tasks)]


def run_training(
    config: TrainConfig, state: TrainState, dataset: Dataset, benchmarks: list[Benchmark], watchdog: Watchdog
) -> int:
    """`train`, once everything is built: restore, loop, report."""
    group, device = state.group, state.compute.device
    with group.report_once():
        batches = TrainBatches(dataset.train, config, device, group.rank, group.world)
        loss = LossEvaluation(dataset, config.eval, config.model.block_size, state.compute, group)
        tasks = [TaskEvaluation(one, dataset.tokenizer, state.compute, group) for one in benchmarks]
        evaluate = Evaluations(loss, tasks)
    warn_of_short_shards(batches, dataset)
    with open_on_all_ranks(config, group) as (path, run), StopFlag() as flag, closing(batches):
        restored = restore(state, dataset, run, config)
        with group.report_once():
            check_horizon_ahead(config, state)
        done = restored and is_done(config, state)
        if run:
            print_run_header(config, state, dataset, loss, run, done)
        group.all_reduce_max(0)  # nobody leaves, or waits, before the leader has read and written all it must
        if done:
            watchdog.stop()
            if run:
                print_already_done(config, state, run)
            return 0
        check_micro_batch_fits(config, state)
        record_measurement(state, loss, dataset, config)
        record = start_logging(config, state, dataset, run, watchdog) if run else None
        watchdog.start(
            flag,
            path,
            config.hardware.timeout,
            config.checkpoint.stop_timeout_s,
            state.compute.compiles,
        )
        with report_errors(record, watchdog, flag):
            if config.tracking.required:
                group.broadcast_from_rank0(lambda: record.wait_for_trackers() if record else None)
            warm_up_ddp_buckets(state, batches.read_batch(batches.first_samples(state.samples)[0]))
            saved = (state.step, state.last_eval_step) if restored else None
            loop = Loop(
                config=config,
                state=state,
                batches=batches,
                evaluations=evaluate,
                logger=record,
                stop_flag=flag,
                watchdog=watchdog,
                saved=saved,
            )
            finished = loop.run()
        if record:
            outcome = "stopped" if not finished else "finished" if state.step == state.total_steps else "paused"
            record.write_status(outcome)
            if outcome == "finished":
                print_results(config, state, record.run)
            else:
                print_stop_message(config, record, flag, loop.stop_request)
            finish_trackers(record, flag, outcome)
        return 0 if finished else STOPPED


def is_done(config: TrainConfig, state: TrainState) -> bool:
    """Whether a restored run has nothing left to do before its end, or where it shall pause."""
    goal = config.last_step(state.total_steps)
    return state.step > goal or (state.step == goal and state.last_eval_step == goal)


@contextmanager
def open_on_all_ranks(
    config: TrainConfig, group: ProcessGroup
) -> Generator[tuple[Path, RunDirectory | None], None, None]:
    """Where the run is, on all ranks; and the run directory itself, locked, on the leader."""
    with ExitStack() as stack:
        mine: list[RunDirectory] = []

        def enter() -> str:
            mine.append(stack.enter_context(open_run(config)))
            return str(mine[0].path)

        yield Path(group.broadcast_from_rank0(enter)), mine[0] if mine else None


def start_logging(
    config: TrainConfig, state: TrainState, dataset: Dataset, run: RunDirectory, watchdog: Watchdog
) -> RunLogger:
    """Note this start in the run directory."""
    write_atomic(run.path / tokenizers.FILE, tokenizers.to_json(dataset.tokenizer))
    if (fruitless := run.count_starts_at(state.step)) >= 2:
        logger.warning(
            f"the last {fruitless} starts all ended at step {state.step} without a new checkpoint; see log.txt"
        )
    if (starts := run.read_starts()) and starts[-1].get("code") != code_digest():
        logger.warning("the code of nanogpt/ has changed since the last start; provenance.json has both states")
    about = {"from_step": state.step, "evaluated": state.last_eval_step, "data": dataset.fingerprint}
    about |= {"arithmetic": state.arithmetic, KEY: state.measurement}
    start = find_start_ids(dataset.tokenizer, dataset.train)
    about |= {"train_tokens": dataset.train.n_tokens, "start_ids": start}
    notes = {"notes": run.notes} if run.notes else {}
    parent = run.origin.forked_from if run.origin and run.new_fork else None
    lineage = {"forked_from": parent.model_dump()} if parent else {}
    run.add_start(collect_provenance(state.compute.name) | about | {"changes": run.changes} | notes | lineage)
    if run.changes:
        write_atomic(run.path / "config.json", schema.to_json(config))
    counted = "train_tokens" in run.read_starts()[0]  # rows of a run from before this was recorded stay as they were
    record = RunLogger(
        config, run, state, dataset.tokenizer, watchdog.heartbeat, start, dataset.train.n_tokens if counted else None
    )
    record.write_status("running")
    return record


@contextmanager
def report_errors(record: RunLogger | None, watchdog: Watchdog, flag: StopFlag) -> Generator[None, None, None]:
    """Whatever ends the loop, the writer is done, the bar is closed, and an error is in status.json and the log."""
    failed = ""
    try:
        yield
    except Exception as error:
        failed = "diverged" if isinstance(error, Diverged) else "failed"
        if record:
            record.write_status(failed)
            record.log(f"{type(error).__name__}: {error}")
        raise
    finally:
        watchdog.stop()
        if record:
            record.checkpointer.close()
            record.progress.close()
            if failed:
                finish_trackers(record, flag, failed)


def finish_trackers(record: RunLogger, flag: StopFlag, state: str) -> None:
    """Upload what trackers lack within tracking.timeout and checkpoint.stop_timeout_s; a second signal ends it."""
    before, config = flag.level, record.config
    left = config.tracking.timeout
    if before:
        left = (
            min(left, flag.first_at + config.checkpoint.stop_timeout_s - time.monotonic())
            if before < Stop.STOP_WITHOUT_SAVING
            else 1.0
        )
    record.trackers.finish(state, left, lambda: flag.level > before)
