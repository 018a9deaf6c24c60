"""A training run from config to exit code, on one rank.

`train` retries with a smaller micro-batch. Each context adds something: `join_group` the device and the process group,
`build_loop` data, model and optimizer, `resume_loop` the run directory and its newest checkpoint. `run_loop` runs the
training loop that they yield.
"""

import logging
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from nanogpt import schema
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
from nanogpt.distributed.signals import StopFlag
from nanogpt.distributed.watchdog import Watchdog, join_with_watchdog
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.evaluation.tasks import Benchmark, Evaluations, TaskEvaluation, fingerprint, load_benchmark
from nanogpt.gpus import RankReport, choose_gpu, report_gpus
from nanogpt.interop.load_weights import load_initial_weights
from nanogpt.provenance import code_digest
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
from nanogpt.training.loop_end import run_loop
from nanogpt.training.nonfinite import replay_incident
from nanogpt.training.related_runs import describe_later_changes
from nanogpt.training.restore import record_measurement, restore
from nanogpt.training.run_logger import start_logging
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.summary import print_already_done, print_run_header
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
    """Train, or continue the run of this config. Returns 0 at its end, 85 if a signal stopped it with all saved.

    With torchrun's RANK and WORLD_SIZE in the environment this is one rank of several. Raises LabError for expected
    failures, after which the run can be continued from its last checkpoint.
    """
    if config.replay is not None:
        return replay_incident(config)
    rank_env = read_rank_env(os.environ)
    mute(rank_env.rank > 0)
    if config.dry_run:
        return print_plan(config, rank_env)
    too_large: int | None = None
    while True:
        try:
            outcome = train_once(config, rank_env, too_large)
        except DidNotFit as error:
            tried = config.with_micro_batch_size(error.sequences)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                if known := as_device_error(error):
                    raise known from error
                raise
            tried = config
        else:
            if not isinstance(outcome, DidNotFit):
                return outcome
            too_large = outcome.sequences
            size = f"hardware.micro_batch_size=auto: {too_large} did not fit after all"
            logger.warning(f"{size}; going on with a smaller one (the loss curve doesn't change)")
            continue
        # Outside of the handlers, because their errors keep the memory of the training alive.
        compute = set_up_device(config.hardware, rank_env.local_rank, rank_env.local_world)
        raise out_of_memory_error(tried, expected_model(config)[0], compute, rank_env.world)


def train_once(config: TrainConfig, rank_env: RankEnv, too_large: int | None) -> int | DidNotFit:
    """Train with a micro-batch that `auto` chooses below `too_large`.

    Returns the exit code, or DidNotFit if all ranks know that this one did not fit either.
    """
    with join_group(config, rank_env) as (compute, group, watchdog):
        outcome = run_in_group(config, compute, group, watchdog, too_large)
        if isinstance(outcome, DidNotFit):
            free_memory(compute)  # what the error still referred to
        return outcome


@contextmanager
def join_group(config: TrainConfig, rank_env: RankEnv) -> Generator[tuple[Compute, ProcessGroup, Watchdog], None, None]:
    """Choose the device and join the process group under a watchdog. Leaves the group unless there was an error."""
    hardware = config.hardware
    compute, group = rendezvous(
        rank_env,
        hardware.timeout,
        lambda reports: choose_device(config, rank_env, reports),
        lambda: report_gpus(hardware.device, rank_env),
    )
    with join_with_watchdog(group, compute.device, hardware.timeout) as watchdog:
        yield compute, group, watchdog


def run_in_group(
    config: TrainConfig, compute: Compute, group: ProcessGroup, watchdog: Watchdog, too_large: int | None
) -> int | DidNotFit:
    """Build the loop of the run and run it. Returns the exit code, or DidNotFit if all ranks know of it.

    A function of its own, so that the loop is freed before the group is closed: see ProcessGroup.close.
    """
    try:
        with build_loop(config, compute, group, watchdog, too_large) as loop:
            return 0 if loop is None else run_loop(loop)
    except DidNotFit as error:
        if not error.everywhere:
            raise
        return DidNotFit(error.sequences)  # without the traceback, which refers to the loop


def choose_device(config: TrainConfig, rank_env: RankEnv, reports: Sequence[RankReport]) -> Compute:
    """Return the device of this rank, given the reports of all ranks. Raises LabError."""
    check_ranks(config, rank_env)
    gpu = choose_gpu(reports, rank_env) if reports else None
    return set_up_device(config.hardware, rank_env.local_rank, rank_env.local_world, gpu=gpu)


@contextmanager
def build_loop(
    config: TrainConfig, compute: Compute, group: ProcessGroup, watchdog: Watchdog, too_large: int | None = None
) -> Generator[Loop | None, None, None]:
    """Prepare the data, build model and optimizer, and yield the loop of the run."""
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
            yield None
            return
        group.broadcast_from_rank0(lambda: check_trackers(config.tracking))
        dataset = group.rank0_first(lambda: prepare_if_small(config.data, config.model.block_size))
        benchmarks = group.rank0_first(lambda: load_benchmarks(config))
        with group.report_once():
            group.check_same_on_all_ranks("data set", {"fingerprint": dataset.fingerprint})
            group.check_same_on_all_ranks(
                "benchmark", {benchmark.name: fingerprint(benchmark) for benchmark in benchmarks}
            )
            model = fit_model_to_data(config, dataset)
            if too_large is None:
                config = reuse_micro_batch_size(config, compute, group, group.world)
            config = resolve_micro_batch_size(config, model, compute, group, group.world, too_large)
            state = build_state(config, model, compute, group)
            schema.run_check(lambda: check_warmup_fits(config, state.total_steps))
        group.rank0_first(lambda: load_initial_weights(config, state.model, dataset.tokenizer))
        with (
            raise_did_not_fit(config, compute, everywhere=False),
            resume_loop(config, state, dataset, benchmarks, watchdog) as loop,
        ):
            yield loop
    except RuntimeError as error:
        raise group.to_peer_lost(error, state.step if state else 0) from error


def load_benchmarks(config: TrainConfig) -> list[Benchmark]:
    """Return the benchmarks in training.eval_tasks. Raises BadData, BadEnvironment."""
    settings = config.training
    return [load_benchmark(name, config.eval, settings.eval_limit) for name in dict.fromkeys(settings.eval_tasks)]


@contextmanager
def resume_loop(
    config: TrainConfig, state: TrainState, dataset: Dataset, benchmarks: list[Benchmark], watchdog: Watchdog
) -> Generator[Loop | None, None, None]:
    """Open the run directory, restore its newest checkpoint and yield the loop; None if the run is done already."""
    group, device = state.group, state.compute.device
    with group.report_once():
        batches = TrainBatches(dataset.train, config, device, group.rank, group.world)
        loss = LossEvaluation(dataset, config.eval, config.model.block_size, state.compute, group)
        tasks = [TaskEvaluation(benchmark, dataset.tokenizer, state.compute, group) for benchmark in benchmarks]
        evaluations = Evaluations(loss, tasks)
    warn_of_short_shards(batches, dataset)
    with open_on_all_ranks(config, group) as (path, run), StopFlag() as flag, closing(batches):
        restored = restore(state, dataset, run, config)
        with group.report_once():
            check_horizon_ahead(state)
        done = restored and is_done(config, state)
        if run:
            print_run_header(config, state, dataset, loss, run, done)
        group.all_reduce_max(0)  # no rank ends, or waits for the next step, before rank 0 has done its I/O
        if done:
            watchdog.stop()
            if run:
                print_already_done(config, state, run)
            yield None
            return
        check_micro_batch_fits(config, state)
        record_measurement(state, loss, dataset, config)
        record = start_logging(config, state, dataset, run, watchdog.heartbeat) if run else None
        watchdog.start(flag, path, config.hardware.timeout, config.checkpoint.stop_timeout_s, state.compute.compiles)
        yield Loop(
            config=config,
            state=state,
            batches=batches,
            evaluations=evaluations,
            logger=record,
            stop_flag=flag,
            watchdog=watchdog,
            saved=(state.step, state.last_eval_step) if restored else None,
        )


def is_done(config: TrainConfig, state: TrainState) -> bool:
    """Return whether a restored run has trained and evaluated to its end, or to stop_at_fraction."""
    goal = config.last_step(state.total_steps)
    return state.step > goal or (state.step == goal and state.last_eval_step == goal)


@contextmanager
def open_on_all_ranks(
    config: TrainConfig, group: ProcessGroup
) -> Generator[tuple[Path, RunDirectory | None], None, None]:
    """Open and lock the run directory on rank 0. Yields its path on all ranks, and the directory on rank 0 only."""
    with ExitStack() as stack:
        mine: list[RunDirectory] = []

        def enter() -> str:
            mine.append(stack.enter_context(open_run(config)))
            return str(mine[0].path)

        yield Path(group.broadcast_from_rank0(enter)), mine[0] if mine else None
