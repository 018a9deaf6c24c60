"""Texts before and after a training: header, results, and the reason of a stop."""

import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from nanogpt.config import TrainConfig
from nanogpt.console import format_command
from nanogpt.data.dataset import Dataset
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.entry_names import parse_sample_step
from nanogpt.errors import one_line
from nanogpt.estimates.plan import eval_line
from nanogpt.evaluation.loss import LOSS_NAMES, LossEvaluation
from nanogpt.files import list_entries, read_text
from nanogpt.formatting import escape_control_chars, format_table
from nanogpt.loss_check import find_loss_problem
from nanogpt.run_directory import RunDirectory
from nanogpt.run_identity import CONTENTS
from nanogpt.training.auto_batch_size import build_plan
from nanogpt.training.auto_choices import describe_choices
from nanogpt.training.related_runs import find_related_run
from nanogpt.training.run_logger import RunLogger
from nanogpt.training.state import TrainState

logger = logging.getLogger(__name__)


def print_run_header(
    config: TrainConfig, state: TrainState, dataset: Dataset, loss: LossEvaluation, run: RunDirectory, done: bool
) -> None:
    """Log the run header: run, data, model, plan, device, memory, time, evaluation."""
    where = f"continuing at step {state.step}" if state.step else "new"
    if done:
        where = f"{'finished' if state.step >= state.total_steps else 'paused'} at step {state.step}"
    logger.info(f"run     {run.path} ({where})")
    if run.new_fork and run.origin and (parent := run.origin.forked_from):
        what = f"forked at step {parent.step} from {one_line(Path(parent.path))}"
        logger.info(f"note    {what}: a run of its own, also for trackers (id {run.origin.id})")
    if not state.step and not run.checkpoints.steps() and (relative := find_related_run(config)):
        path, keys = relative
        held = [path for path, digest in CONTENTS.items() if keys == [digest]]
        allow = f" resume.allow_change=[{'data' if held else ','.join(keys)}]" if held != ["init_from"] else ""
        what = f"began with other content of {held[0]}" if held else f"differs in {', '.join(keys)} alone"
        goes_on = f"resume.run={path}{allow}"
        logger.info(f"note    {one_line(path)} {what}; this is another run. To go on with that one: {goes_on}")
    logger.info(f"data    {config.data.name}: {dataset.description}")
    for note in dataset.notes:
        logger.info(f"note    {note}")
    plan = build_plan(config, state.model.config, state.compute, state.group.world)
    plan = replace(plan, train_tokens=dataset.train.n_tokens)
    logger.info(
        "\n".join([*plan.lines(), *describe_choices(config, state.compute), f"eval    {eval_line(plan, loss.tokens)}"])
    )


def print_results(config: TrainConfig, state: TrainState, run: RunDirectory) -> None:
    """Log the results, the last sample, the files and the next commands."""
    results = state.last_eval
    best = f"{state.best[0]:.4f} at step {state.best[1]:,}" if state.best else ""
    rows = [
        ("train loss", f"{results['train_loss']:.4f} nats/token" if "train_loss" in results else "not evaluated"),
        ("val loss", f"{results['val_loss']:.4f} nats/token, {results['val_bpb']:.4f} bits/byte"),
        ("best val loss", best),
        *((name, f"{value:.4g}") for name, value in results.items() if name not in LOSS_NAMES),
        ("tokens", f"{state.samples * config.model.block_size:,} in {state.step:,} steps"),
    ]
    logger.info("")
    logger.info(format_table("result", ("", ""), rows))
    lowest = state.best[0] if state.best else results["val_loss"]
    trouble = find_loss_problem(results["val_loss"], lowest, state.model.config.vocab_size, results.get("train_loss"))
    if trouble and state.step:
        remedy = "; a lower optimizer.lr or a longer schedule.warmup_steps is the usual remedy"
        logger.warning(f"finished, {trouble.description}{remedy if trouble.diverged else ''}")
    samples = [path for path in list_entries(run.path / "samples") if parse_sample_step(path.name) is not None]
    if samples:
        logger.info(f"\nsample ({samples[-1]}):")
        text = read_text(samples[-1], "replace")
        logger.info("\n".join(f"  | {escape_control_chars(line)}" for line in text.splitlines()))
    logger.info(f"\nrun directory  {run.path}\nloss curve     {run.plot}\n\nnext:")
    embedded = config.data.corpus == "pystdlib"
    prompt = " prompt='def '" if embedded else ""
    logger.info(f"  {next_command('sample')} run={run.path}{prompt}")
    if embedded:
        logger.info(f"  {next_command('train')} experiment=shakespeare_char_cpu")
        logger.info(f"  {next_command('train')} data=text data.source='notes/*.txt'")


def next_command(name: str) -> str:
    """Return how this user starts a command, with the path of its program unless this environment is active."""
    program, words = format_command(name).split(" ")
    found, here = shutil.which(program), Path(sys.executable)
    if found and Path(found).parent == here.parent:
        return f"{program} {words}"
    path = here if program == "python" else here.with_name(program)
    near = os.path.relpath(path)
    return f"{path if near.startswith('..') else near} {words}"


def print_already_done(config: TrainConfig, state: TrainState, run: RunDirectory) -> None:
    """Log the results of a run that is finished or paused already, and restore a lost status.json."""
    outcome = "paused" if state.step < state.total_steps else "finished"
    if run.read_status().get("state") != outcome:
        run.write_status(outcome, step=state.step, steps=state.total_steps, best=state.best)
    if outcome == "paused":
        logger.info(f"paused already, at step {state.step} of {state.total_steps}; stop_at_fraction=null goes on")
        return
    logger.info(f"finished already, at step {state.step}; new_attempt=true trains it again beside this one")
    print_results(config, state, run)


def print_stop_message(config: TrainConfig, record: RunLogger, flag: StopFlag, agreed: Stop) -> None:
    """Log why the run stopped and how to continue it."""
    step, steps = record.state.step, record.run.checkpoints.steps()
    if not agreed:
        logger.info(f"paused at step {step} of {record.state.total_steps}, all saved; stop_at_fraction=null goes on")
        return
    again = "the same command without new_attempt=true" if config.new_attempt else "the same command"
    reason = flag.reason or "a signal to another rank"
    if agreed < Stop.STOP_WITHOUT_SAVING or step in steps:
        logger.info(f"{reason}: stopped at step {step}, all saved; {again} continues")
    else:
        where = f"continues at step {steps[-1]}" if steps else "starts anew"
        logger.info(f"{reason} twice: stopped at step {step} without saving; {again} {where}")
