"""A training run from config to exit code: data, model, run directory, restore, loop, summary."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import torch
from pydantic_core import PydanticCustomError

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import ModelConfig, TrainConfig, check_horizon
from nanogpt.data.batches import TrainBatches
from nanogpt.data.dataset import Dataset
from nanogpt.data.prepare import ensure
from nanogpt.device import Compute, memory_bytes, set_up
from nanogpt.errors import STOPPED, BadData, BadEnvironment, BadInput, Diverged, escaped
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.files import write_atomic
from nanogpt.model.cost import flops_per_token, parameter_counts, parameter_estimate
from nanogpt.provenance import provenance
from nanogpt.run_directory import RunDirectory, opened
from nanogpt.tracking.console import amount, say, table, visible
from nanogpt.training.loop import train_loop
from nanogpt.training.record import Record
from nanogpt.training.state import TrainState, build_state
from nanogpt.training.stop import StopFlag

TRAINING_BYTES = 16  # per parameter: weight, gradient and two moments in fp32


def train(config: TrainConfig) -> int:
    """Train to the end (0), or until somebody asks to stop (85). The same config again continues or says it's done.

    Raises a LabError for everything that was foreseen; what is on disk is then what it was, or more.
    """
    try:
        return prepare_and_train(config)
    except (MemoryError, RuntimeError) as error:  # the CPU allocator raises a plain RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        half = max(1, config.micro_batch_size // 2)
        raise BadEnvironment(
            f"hardware.micro_batch_size={config.micro_batch_size}: out of memory; "
            f"try hardware.micro_batch_size={half}, which changes nothing but the speed"
        ) from None


def prepare_and_train(config: TrainConfig) -> int:
    """`train`, without the translation of memory errors."""
    compute = set_up(config.hardware)
    refuse_too_large(config.model, compute)
    dataset = ensure(config.data)
    state = build_state(config, model_for(config, dataset), compute)
    refuse_long_warmup(config, state.steps)
    batches = TrainBatches(dataset.train, config, compute.device)
    warn_of_short_shards(batches, dataset)
    evaluate = LossEvaluation(dataset, config.eval, config.model.block_size, compute)
    with opened(config) as run, StopFlag() as should_stop:
        restored = restore(state, run, dataset)
        introduce(config, state, dataset, run)
        if state.step == state.steps and state.evaluated == state.step and restored:
            say(f"finished already, at step {state.step}; fresh=true trains it again beside this one")
            conclude(config, state, run)
            return 0
        write_atomic(run.path / tokenizers.FILE, tokenizers.to_json(dataset.tokenizer))
        about = {"from_step": state.step, "data": dataset.fingerprint, "arithmetic": state.arithmetic}
        run.add_start(provenance(compute.name) | about)
        record = Record(config, run, state, dataset.tokenizer)
        record.status("running")
        try:
            finished = train_loop(config, state, batches, evaluate, run, record, should_stop)
        except Exception as error:
            with suppress(OSError):  # on a full disk the error itself is what matters
                record.status("diverged" if isinstance(error, Diverged) else "failed")
            raise
        finally:
            record.steps.close()
        record.status("finished" if finished else "stopped")
        if not finished:
            again = "the same command without fresh=true" if config.fresh else "the same command"
            say(f"{should_stop.reason}: stopped at step {state.step}, all saved; {again} continues")
            return STOPPED
        conclude(config, state, run)
        return 0


def model_for(config: TrainConfig, dataset: Dataset) -> ModelConfig:
    """The model with the data's vocabulary. Raises BadData when the model's own is too small."""
    model = config.model.with_vocab(dataset.vocab_size)
    assert model.vocab_size is not None
    if model.vocab_size < dataset.vocab_size:
        raise BadData(f"model.vocab_size={model.vocab_size}: the data needs at least {dataset.vocab_size}")
    if model.vocab_size > dataset.vocab_size + 64:
        say(f"warning: model.vocab_size={model.vocab_size}, but the data has only {dataset.vocab_size} ids")
    return model


def refuse_too_large(model: ModelConfig, compute: Compute) -> None:
    """A model whose training state alone can't fit is an input error, not a crash minutes later."""
    n_params = parameter_estimate(model)
    needed, there = n_params * TRAINING_BYTES, memory_bytes(compute.device)
    if there and needed > there:
        raise BadInput(
            f"model.n_layer={model.n_layer} model.n_embd={model.n_embd}: {amount(n_params)} parameters need "
            f"{amount(needed, 'G')}B for weights, gradients and moments; {compute.device} has {amount(there, 'G')}B"
        )


def refuse_long_warmup(config: TrainConfig, steps: int) -> None:
    """The check that tokens_per_param left open until the model was built."""
    try:
        check_horizon(config, steps)
    except PydanticCustomError as error:
        context = error.context or {}
        raise BadInput(f"{schema.shown(context['key'], context['value'])}: {context['why']}") from None


def warn_of_short_shards(batches: TrainBatches, dataset: Dataset) -> None:
    """Windows don't cross files, so many short ones can hide most of the text from training."""
    reached = batches.sampler.n_windows * (batches.block_size if batches.sampler.order == "permutation" else 1)
    if reached < 0.8 * dataset.train.n_tokens and len(dataset.train.shards) > 1:
        share = 100 * reached / dataset.train.n_tokens
        say(f"warning: only {share:.0f} % of the training tokens are in files long enough for model.block_size")


def restore(state: TrainState, run: RunDirectory, dataset: Dataset) -> bool:
    """Continue from the newest good checkpoint, with metrics cut to its step. Returns whether there was one."""
    loaded, bad = run.checkpoints.newest()
    for warning in bad:
        say(f"warning: {warning}; set aside, an older checkpoint is used")
    if loaded is not None:
        theirs = loaded.state.get("data")
        if theirs != dataset.fingerprint:
            raise BadData(
                f"{escaped(dataset.folder)}: not the data this run was trained on (fingerprint "
                f"{dataset.fingerprint[:12]}, was {escaped(theirs)[:12]}); fresh=true starts another attempt"
            )
        state.restore(loaded)
        run.checkpoints.set_aside(after=state.step)
        before = loaded.state.get("arithmetic")
        if before != state.arithmetic:
            say(f"warning: was trained with {before}, now {state.arithmetic}: rounding can differ")
    state.data = dataset.fingerprint
    run.metrics.rewind(state.step if loaded else -1, state.evaluated)
    run.timing.rewind(state.step if loaded else -1)
    return loaded is not None


def introduce(config: TrainConfig, state: TrainState, dataset: Dataset, run: RunDirectory) -> None:
    """What is about to happen, in five lines."""
    counts = parameter_counts(state.model)
    parts = ", ".join(f"{name} {amount(count)}" for name, count in counts.items() if name != "total")
    flops = flops_per_token(state.model.config, counts["total"])
    tokens = state.steps * config.training.batch_tokens
    compute = state.compute
    where = f"continuing at step {state.step}" if state.step else "new"
    threads = f", {torch.get_num_threads()} threads" if compute.device.type == "cpu" else ""
    say(f"run     {run.path} ({where})")
    say(f"data    {config.data.name}: {dataset.description}")
    say(f"model   {config.model.name}: {amount(counts['total'])} parameters ({parts}), {amount(flops, 'G')}FLOP/token")
    say(
        f"plan    {state.steps:,} steps of {config.training.batch_tokens:,} tokens = {amount(tokens)} tokens; "
        f"{config.grad_accum} micro-batches of {config.micro_batch_size} x {config.model.block_size}"
    )
    say(f"device  {compute.device} ({compute.name}), {compute.precision}{threads}")


def conclude(config: TrainConfig, state: TrainState, run: RunDirectory) -> None:
    """The result, a sample, and where everything is."""
    results = state.results
    best = f"{state.best[0]:.4f} at step {state.best[1]:,}" if state.best else ""
    rows = [
        ("train loss", f"{results['train_loss']:.4f} nats/token" if "train_loss" in results else "not evaluated"),
        ("val loss", f"{results['val_loss']:.4f} nats/token, {results['val_bpb']:.4f} bits/byte"),
        ("best val loss", best),
        ("tokens", f"{state.step * config.training.batch_tokens:,} in {state.step:,} steps"),
    ]
    say()
    say(table("result", ("", ""), rows))
    samples = sorted((run.path / "samples").glob("step-*.txt"))
    if samples:
        say(f"\nsample ({samples[-1]}):")
        text = samples[-1].read_text(encoding="utf-8")
        say("\n".join(f"  | {visible(line)}" for line in text.splitlines()))
    say(f"\nrun directory  {run.path}\nloss curve     {run.plot}\n\nnext:")
    python = interpreter()
    say(f"  {python} sample.py run={run.path} prompt='{'def ' if config.data.corpus == 'pystdlib' else 'The '}'")
    say(f"  {python} train.py experiment=shakespeare_char_cpu")
    say(f"  {python} train.py data=text data.source='notes/*.txt'")


def interpreter() -> str:
    """How a person starts this Python from this folder: `python` where its environment is active."""
    found = shutil.which("python")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "python"
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith("..") else near
