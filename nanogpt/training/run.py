"""A training run from config to exit code, on one rank of it: device, peers, data, model, run directory, loop."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import ModelConfig, TrainConfig, check_horizon
from nanogpt.data.batches import TrainBatches
from nanogpt.data.dataset import Dataset, expected_vocab_size
from nanogpt.data.prepare import ensure
from nanogpt.device import Compute, memory_bytes, set_up
from nanogpt.distributed import Peers, meet
from nanogpt.errors import STOPPED, BadData, BadInput, Diverged, LabError
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.files import write_atomic
from nanogpt.interop.initial import load_weights, refuse_other_tokenizer
from nanogpt.interop.sources import find_source
from nanogpt.model.cost import parameter_counts
from nanogpt.model.memory import training_memory
from nanogpt.place import Place, place_from
from nanogpt.provenance import code_digest, provenance
from nanogpt.run_directory import RunDirectory, locate, opened
from nanogpt.tracking.console import amount, say, silence
from nanogpt.training.incidents import replay
from nanogpt.training.loop import Loop
from nanogpt.training.probe import advice, out_of_memory, plan_of, settled
from nanogpt.training.record import Record
from nanogpt.training.restore import restore
from nanogpt.training.state import TrainState, build_state, settle_buckets
from nanogpt.training.stop import Stop, StopFlag
from nanogpt.training.summary import conclude, introduce
from nanogpt.training.watch import Watch


def train(config: TrainConfig) -> int:
    """Train to the end (0), or until somebody asks to stop (85). The same config again continues or says it's done.

    With RANK and its like in the environment (torchrun) this is one rank of several. Raises a LabError for everything
    that was foreseen; what is on disk is then what it was, or more.
    """
    if config.replay is not None:
        return replay(config)
    place = place_from(os.environ)
    silence(place.rank > 0)
    if config.plan:
        return show_plan(config, place)
    try:
        return train_on(config, place)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    # Out of the handler, whose error holds on to everything that the training had in memory.
    compute = set_up(config.hardware, place.local_rank, place.local_world)
    raise advice(config, expected_model(config)[0], compute, place.world)


def show_plan(config: TrainConfig, place: Place) -> int:
    """`plan=true`: what a training would begin with saying, and nothing else."""
    if place.rank > 0:
        return 0
    world = config.hardware.devices or place.world
    schema.checked(lambda: config.refuse_ranks(world, "WORLD_SIZE"))
    compute = set_up(config.hardware, 0, config.hardware.devices or place.local_world)
    refuse_too_large(config, compute)
    model, sure = expected_model(config)
    plan = plan_of(settled(config, model, compute, Peers(), world), model, compute, world, sure)
    schema.checked(lambda: check_horizon(config, plan.steps))
    say("\n".join(plan.lines()))
    return 0


def train_on(config: TrainConfig, place: Place) -> int:
    """`train`, on one of the ranks."""
    compute, problem = set_up_or_say(config, place)
    peers = meet(place, config.hardware.timeout, problem)
    assert compute is not None, "a problem was raised by meet"
    with Watch(peers) as watch:
        watch.patience = config.hardware.timeout
        peers.join(compute.device)
        watch.patience = float("inf")  # until the loop: the leader may prepare data for hours
        code = train_with(config, compute, peers, watch)
    peers.close()
    return code


def set_up_or_say(config: TrainConfig, place: Place) -> tuple[Compute | None, LabError | None]:
    """The device, or why there is none: the other ranks shall know."""
    try:
        refuse_ranks(config, place)
        return set_up(config.hardware, place.local_rank, place.local_world), None
    except LabError as error:
        return None, error


def refuse_ranks(config: TrainConfig, place: Place) -> None:
    """The ranks that were started fit the config. Raises BadInput."""
    devices = config.hardware.devices
    if devices is not None and devices != place.local_world:
        raise BadInput(f"hardware.devices={devices}: but {place.local_world} ranks were started on this machine")
    schema.checked(lambda: config.refuse_ranks(place.world, "WORLD_SIZE"))


def train_with(config: TrainConfig, compute: Compute, peers: Peers, watch: Watch) -> int:
    """`train`, once the ranks have met."""
    state = None
    try:
        with peers.alike():
            peers.refuse_differences("code", {"sha256": code_digest(), "torch": str(torch.__version__)})
            peers.refuse_differences("config", dict(schema.values(config)))
            refuse_too_large(config, compute)
        dataset = peers.leader_first(lambda: ensure(config.data))
        with peers.alike():
            peers.refuse_differences("data set", {"fingerprint": dataset.fingerprint})
            model = model_for(config, dataset)
            config = settled(config, model, compute, peers, peers.world)
            state = build_state(config, model, compute, peers)
            schema.checked(lambda: check_horizon(config, state.steps))
        peers.leader_first(lambda: start_from(config, state, dataset))
        return train_state(config, state, dataset, watch)
    except RuntimeError as error:
        raise peers.explain(error, state.step if state else 0) from error


def start_from(config: TrainConfig, state: TrainState, dataset: Dataset) -> None:
    """The weights of `init_from`, unless the run has a checkpoint already: then nobody needs them any more."""
    if config.init_from == "scratch" or RunDirectory(locate(config)).checkpoints.steps():
        return
    source = find_source(config.init_from)
    refuse_other_tokenizer(source, dataset.tokenizer)
    load_weights(state.model, source)


def train_state(config: TrainConfig, state: TrainState, dataset: Dataset, watch: Watch) -> int:
    """`train`, once everything is built: restore, loop, report."""
    peers, device = state.peers, state.compute.device
    with peers.alike():
        batches = TrainBatches(dataset.train, config, device, peers.rank, peers.world)
        evaluate = LossEvaluation(dataset, config.eval, config.model.block_size, state.compute, peers)
    warn_of_short_shards(batches, dataset)
    with directory(config, peers) as (path, run), StopFlag() as flag:
        restored = restore(state, dataset, run, config)
        with peers.alike():
            refuse_shorter(config, state)
        if run:
            introduce(config, state, dataset, run)
        peers.agree(0)  # nobody leaves, or waits, before the leader has read and written all it must
        if state.step == state.steps and state.evaluated == state.step and restored:
            watch.end()
            say(f"finished already, at step {state.step}; fresh=true trains it again beside this one")
            if run:
                conclude(config, state, run)
            return 0
        record = begin(config, state, dataset, run, watch) if run else None
        watch.arm(flag, path, config.hardware.timeout, config.checkpoint.grace)
        with reporting(record, watch):
            settle_buckets(state, batches.batch(batches.firsts(state.samples)[0]))
            saved = (state.step, state.evaluated) if restored else None
            loop = Loop(config, state, batches, evaluate, record, flag, watch, saved)
            finished = loop.run()
        if record:
            record.status("finished" if finished else "stopped")
            if finished:
                conclude(config, state, record.run)
            else:
                farewell(config, record, flag, loop.agreed)
        return 0 if finished else STOPPED


@contextmanager
def directory(config: TrainConfig, peers: Peers) -> Generator[tuple[Path, RunDirectory | None], None, None]:
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
    about = {"from_step": state.step, "data": dataset.fingerprint, "arithmetic": state.arithmetic}
    run.add_start(provenance(state.compute.name) | about | {"changes": run.changes})
    if run.changes:
        write_atomic(run.path / "config.json", schema.to_json(config))
    record = Record(config, run, state, dataset.tokenizer, watch.beat)
    record.status("running")
    return record


@contextmanager
def reporting(record: Record | None, watch: Watch) -> Generator[None, None, None]:
    """Whatever ends the loop, the writer is done, the bar is closed, and an error is in status.json and the log."""
    try:
        yield
    except Exception as error:
        if record:
            record.status("diverged" if isinstance(error, Diverged) else "failed")
            record.log(f"{type(error).__name__}: {error}")
        raise
    finally:
        watch.end()
        if record:
            record.saver.close()
            record.steps.close()


def farewell(config: TrainConfig, record: Record, flag: StopFlag, agreed: Stop) -> None:
    """Why it stopped, and how it goes on."""
    step, steps = record.state.step, record.run.checkpoints.steps()
    again = "the same command without fresh=true" if config.fresh else "the same command"
    reason = flag.reason or "a signal to another rank"
    if agreed < Stop.NOW or step in steps:
        say(f"{reason}: stopped at step {step}, all saved; {again} continues")
    else:
        where = f"continues at step {steps[-1]}" if steps else "starts anew"
        say(f"{reason} twice: stopped at step {step} without saving; {again} {where}")


def refuse_shorter(config: TrainConfig, state: TrainState) -> None:
    """The run isn't past the horizon already. Raises BadInput."""
    if state.step > state.steps:
        raise BadInput(
            f"the horizon of training.steps, tokens, tokens_per_param or flops is step {state.steps:,}, "
            f"but the run is at step {state.step:,} already"
        )


def model_for(config: TrainConfig, dataset: Dataset) -> ModelConfig:
    """The model with the data's vocabulary. Raises BadData when the model's own is too small."""
    model = config.model.with_vocab(dataset.vocab_size)
    assert model.vocab_size is not None
    if model.vocab_size < dataset.vocab_size:
        raise BadData(f"model.vocab_size={model.vocab_size}: the data needs at least {dataset.vocab_size}")
    if model.vocab_size > dataset.vocab_size + 64:
        say(f"warning: model.vocab_size={model.vocab_size}, but the data has only {dataset.vocab_size} ids")
    return model


def expected_model(config: TrainConfig) -> tuple[ModelConfig, bool]:
    """The model before its data is opened, and whether the vocabulary is sure."""
    vocab_size, sure = expected_vocab_size(config.data)
    return config.model.with_vocab(vocab_size), sure or config.model.vocab_size is not None


def refuse_too_large(config: TrainConfig, compute: Compute) -> None:
    """A model whose training state alone can't fit is an input error, not a crash minutes later."""
    model, _ = expected_model(config)
    n_params, needed = parameter_counts(model)["total"], training_memory(model, "fp32", 1).state
    there = memory_bytes(compute.device)
    if there and needed > there:
        raise BadInput(
            f"model.n_layer={model.n_layer} model.n_embd={model.n_embd}: {amount(n_params)} parameters need "
            f"{amount(needed, 'G')}B for weights, gradients and moments; {compute.device} has {amount(there, 'G')}B"
        )


def warn_of_short_shards(batches: TrainBatches, dataset: Dataset) -> None:
    """Windows don't cross files, so many short ones can hide most of the text from training."""
    reached = batches.sampler.n_windows * (batches.block_size if batches.sampler.order == "permutation" else 1)
    if reached < 0.8 * dataset.train.n_tokens and len(dataset.train.shards) > 1:
        share = 100 * reached / dataset.train.n_tokens
        say(f"warning: only {share:.0f} % of the training tokens are in files long enough for model.block_size")
