"""Reports of the training loop: metrics, log lines, loss curve, samples and trackers. On rank 0 only."""

import logging
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from nanogpt import schema
from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig
from nanogpt.console import WARNING
from nanogpt.data.dataset import Dataset
from nanogpt.data.sampler import derive_seed
from nanogpt.distributed.signals import Stop, StopFlag
from nanogpt.errors import one_line
from nanogpt.estimates.flops import flops_per_token
from nanogpt.estimates.gpu_specs import compute_mfu
from nanogpt.evaluation.loss import LOSS_NAMES
from nanogpt.files import open_no_link, write_atomic
from nanogpt.formatting import escape_control_chars, format_count, format_duration
from nanogpt.generation.decode import SamplingParams, generate
from nanogpt.generation.start_tokens import find_start_ids
from nanogpt.measurement import MEASUREMENT_KEY, Measurement
from nanogpt.metrics_file import read_rows
from nanogpt.model.gpt import GPT
from nanogpt.progress import TrainProgress
from nanogpt.provenance import code_digest, collect_provenance
from nanogpt.redaction import redact
from nanogpt.reference import Reference, choose_reference
from nanogpt.run_directory import RunDirectory
from nanogpt.tokenizer import Tokenizer
from nanogpt.tracking.run_metadata import make_run_metadata
from nanogpt.tracking.trackers import Trackers
from nanogpt.training.async_checkpoint import AsyncCheckpointer
from nanogpt.training.state import TrainState
from nanogpt.training.step import StepMetrics

logger = logging.getLogger(__name__)

SAMPLE_LINES = 4  # printed of each sample


class RunLogger:
    """Reports of one start of a run."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        run: RunDirectory,
        state: TrainState,
        tokenizer: Tokenizer,
        heartbeat: Callable[[int], None],
        start_ids: list[int],
        train_tokens: int | None,
        reference: Reference | None,
    ) -> None:
        """Create a logger whose samples continue `start_ids`. Rows have an epoch if `train_tokens` is given."""
        self.reference = reference
        self.heartbeat, self.start_ids, self.train_tokens = heartbeat, start_ids, train_tokens
        self.config, self.run, self.state, self.tokenizer = config, run, state, tokenizer
        self.progress = TrainProgress(state.step, state.total_steps)
        self.checkpointer = AsyncCheckpointer(run, config.checkpoint.max_failed, self.note)
        self.block_size, self.batch_tokens = config.model.block_size, config.training.batch_tokens
        self.flops = flops_per_token(state.model.config)
        self.energy = state.compute.read_energy() if state.group.world == 1 else None
        """Joules of the GPU before the first step; None: not known, or there are several GPUs."""
        self.first_step, self.last_row = state.step, state.step
        self.seconds_trained = self.seconds_since_row = 0.0
        """Seconds in training steps, in this start and since the last row."""
        self.models_at_once = 1
        """Models whose steps take this time together."""
        self.reported_full_disk = False
        """True once a full disk was reported."""
        self.trackers = Trackers(
            make_run_metadata(config, run.path, run.read_starts()),
            lambda step: config.evaluates_at(step, state.total_steps),
            self.note,
            self.log,
        )

    def note(self, text: str) -> None:
        """Log a line on the console and in log.txt."""
        level = logging.WARNING if text.startswith(WARNING) else logging.INFO
        logger.log(level, redact(text.removeprefix(WARNING)))
        self.log(text)

    def log(self, text: str) -> None:
        """Write a line to log.txt only."""
        with (
            self.tolerate_full_disk(),
            open(self.run.path / "log.txt", "a", encoding="utf-8", opener=open_no_link) as file,
        ):
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {redact(text)}\n")

    @contextmanager
    def tolerate_full_disk(self) -> Generator[None, None, None]:
        """Context for optional files: a full disk is reported once and does not end the run."""
        try:
            yield
        except OSError as error:
            self.report_full_disk(error.strerror or str(error))

    def report_full_disk(self, why: str) -> None:
        if not self.reported_full_disk:
            self.reported_full_disk = True
            logger.warning(
                f"{one_line(self.run.path)} can't be written: {why}; rows are kept in memory, training goes on"
            )

    def append_row(self, row: dict[str, float]) -> None:
        """Append a row to metrics.jsonl. On a full disk it is kept in memory."""
        tokens = self.state.samples * self.block_size
        counts: dict[str, float] = {"step": self.state.step, "tokens": tokens}
        counts |= {"epoch": round(tokens / self.train_tokens, 6)} if self.train_tokens else {}
        if self.run.metrics.append(counts | row):
            self.reported_full_disk = False
        else:
            self.report_full_disk("no space for a row of metrics.jsonl")
        self.trackers.notify_row()

    def wait_for_trackers(self) -> None:
        """Wait for the trackers to start. Raises BadEnvironment."""
        self.trackers.wait_until_started(lambda: self.heartbeat(self.state.step))

    def finish_trackers(self, flag: StopFlag, outcome: str) -> None:
        """Send trackers what they lack, within tracking.timeout and checkpoint.stop_timeout_s, until another signal."""
        level, seconds = flag.level, self.config.tracking.timeout
        if level >= Stop.STOP_WITHOUT_SAVING:
            seconds = 1.0
        elif level:
            seconds = min(seconds, flag.first_at + self.config.checkpoint.stop_timeout_s - time.monotonic())
        self.trackers.finish(outcome, seconds, lambda: flag.level > level)

    def log_step(self, metrics: StepMetrics, spike: str | None, duration: float) -> None:
        """Record a step with an update. Every tracking.log_every steps a row and a line are written."""
        self.seconds_trained += duration
        self.seconds_since_row += duration
        if spike:
            self.note(f"step {self.state.step}: spike: {spike}")
        if self.state.step % self.config.tracking.log_every == 0 or self.state.step == self.state.total_steps:
            row = {"loss": metrics.loss, "lr": metrics.lr}
            row |= {"grad_norm": metrics.grad_norm} if math.isfinite(metrics.grad_norm) else {}
            self.show_progress(metrics.loss, metrics.grad_norm, metrics.lr)  # first: trackers send both rows together
            self.append_row(row | ({"spikes": self.state.spikes.count} if self.state.spikes.count else {}))

    def log_skipped_step(self, metrics: StepMetrics, why: str) -> None:
        """Record a step that made no update."""
        self.append_row({"lr": metrics.lr, "skipped": len(self.state.skipped_steps)})
        self.note(f"{why}; its update is left out, training goes on")

    def show_progress(self, loss: float, grad_norm: float, lr: float) -> None:
        """Write the speed to timing.jsonl, and metrics and speed to the console."""
        state = self.state
        done = state.step - self.last_row
        rate = self.models_at_once * done * self.batch_tokens / max(self.seconds_since_row, 1e-9)
        left = (state.total_steps - state.step) * self.seconds_trained / max(1, state.step - self.first_step)
        mfu = compute_mfu(rate * self.flops, state.compute.name, state.compute.precision, state.group.world)
        self.run.timing.append(
            {"step": state.step, "time": time.time(), "tokens_per_second": rate} | ({"mfu": mfu} if mfu else {})
        )
        self.last_row, self.seconds_since_row = state.step, 0.0
        facts = {"loss": f"{loss:.4f}"}
        if state.last_eval:
            facts["val"] = f"{state.last_eval['val_loss']:.4f}"
        facts |= {"lr": f"{lr:.2e}", "grad": f"{grad_norm:.2f}", "tok/s": format_count(rate)}
        if mfu:
            facts["MFU"] = f"{100 * mfu:.1f}%"
        self.progress.show(state.step, facts | {"ETA": format_duration(left)})

    def log_evaluation(self, results: dict[str, float], model: GPT) -> None:
        """Report an evaluation: row, log line, loss curve, status and a sample."""
        state = self.state
        self.trackers.times[state.step] = time.time()
        self.append_row(results)
        best = state.best is not None and state.best[1] == state.step
        train = f"  train {results['train_loss']:.4f}" if "train_loss" in results else ""
        side = self.reference.describe(state.step, results["val_loss"]) if self.reference else ""
        self.note(
            f"step {state.step}  val {results['val_loss']:.4f} nats/token, {results['val_bpb']:.4f} bits/byte"
            f"{train}{'  best' if best else ''}{side}"
        )
        if tasks := [f"{name} {value:.4g}" for name, value in results.items() if name not in LOSS_NAMES]:
            self.note(f"step {state.step}  {'  '.join(tasks)}")
        with self.tolerate_full_disk():
            self.draw_loss_curve()
        self.write_status("running")
        if self.config.tracking.sample_tokens:
            text = self.generate_sample(model)
            with self.tolerate_full_disk():
                folder = self.run.path / "samples"
                folder.mkdir(exist_ok=True)
                write_atomic(folder / f"step-{state.step:08d}.txt", text)
            self.trackers.notify_sample(state.step, text)
            lines = [escape_control_chars(line) for line in text.splitlines() if line.strip()]
            logger.info("\n".join(f"  | {line[:100]}" for line in lines[:SAMPLE_LINES]))

    def draw_loss_curve(self) -> None:
        """Draw plots/loss.png if there are two rows or more."""
        rows = read_rows(self.run.metrics.path)
        if len(rows) < 2:
            return
        from nanogpt.tracking.plots import plot_loss  # imports matplotlib, which takes half a second

        plot_loss(rows, self.run.plot, self.run.path.name)

    def write_status(self, state: str) -> None:
        """Write status.json."""
        now, facts = self.state.compute.read_energy(), {"step": self.state.step, "steps": self.state.total_steps}
        joules = None if now is None or self.energy is None else now - self.energy
        shared = {"models_at_once": self.models_at_once} if self.models_at_once > 1 else {}
        used = {"active_unix_s": time.time(), "joules": joules} | shared
        with self.tolerate_full_disk():
            self.run.write_status(state, **facts, best=self.state.best, **used)

    def generate_sample(self, model: GPT) -> str:
        """Generate a text. The seed is fixed, so equal weights give equal texts."""
        state = self.state
        device = state.compute.device
        generator = torch.Generator(device).manual_seed(derive_seed(self.config.training.seed, "sample"))
        draw = SamplingParams(temperature=0.8, vocab_size=len(self.tokenizer.tokens))
        drawn = generate(model, [self.start_ids], self.config.tracking.sample_tokens, draw, [generator])
        ids: list[int] = []
        for row in drawn:
            ids += row
            self.heartbeat(state.step)
        return tokenizers.decode(self.tokenizer, ids)


def start_logging(
    config: TrainConfig, state: TrainState, dataset: Dataset, run: RunDirectory, heartbeat: Callable[[int], None]
) -> RunLogger:
    """Record this start in the run directory, and return its logger."""
    write_atomic(run.path / tokenizers.FILE, tokenizers.to_json(dataset.tokenizer))
    if (fruitless := run.count_starts_at(state.step)) >= 2:
        logger.warning(
            f"the last {fruitless} starts all ended at step {state.step} without a new checkpoint; see log.txt"
        )
    if (starts := run.read_starts()) and starts[-1].get("code") != code_digest():
        logger.warning("the code of nanogpt/ has changed since the last start; provenance.json has both states")
    about = {"start_unix_s": run.opened} | ({"previous_start": run.last_record} if starts else {})
    about |= {"from_step": state.step, "evaluated": state.last_eval_step, "data": dataset.fingerprint}
    about |= {"arithmetic": state.arithmetic, MEASUREMENT_KEY: state.measurement}
    start = find_start_ids(dataset.tokenizer, dataset.train)
    about |= {"train_tokens": dataset.train.n_tokens, "start_ids": start}
    notes = {"notes": run.notes} if run.notes else {}
    parent = run.origin.forked_from if run.origin and run.new_fork else None
    lineage = {"forked_from": parent.model_dump()} if parent else {}
    run.add_start(collect_provenance(state.compute.name) | about | {"changes": run.changes} | notes | lineage)
    if run.changes:
        write_atomic(run.path / "config.json", schema.to_json(config))
    has_epochs = "train_tokens" in run.read_starts()[0]  # runs of earlier versions keep rows without epochs
    record = RunLogger(
        config=config,
        run=run,
        state=state,
        tokenizer=dataset.tokenizer,
        heartbeat=heartbeat,
        start_ids=start,
        train_tokens=dataset.train.n_tokens if has_epochs else None,
        reference=choose_reference(config, Measurement(**state.measurement)),
    )
    record.write_status("running")
    return record
