"""What the loop reports to: rows on disk, lines for a person, the picture, the samples."""

import math
import time

import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig
from nanogpt.data.sampler import seed_of
from nanogpt.errors import Diverged
from nanogpt.files import write_atomic
from nanogpt.generate import Draw, generate
from nanogpt.model.cost import flops_per_token, parameter_counts, peak_flops
from nanogpt.run_directory import RunDirectory
from nanogpt.tokenizer import Tokenizer
from nanogpt.tracking.console import Steps, amount, seconds, visible
from nanogpt.tracking.metrics import read_rows
from nanogpt.training.state import TrainState
from nanogpt.training.step import StepMetrics

SHOWN_LINES = 4  # of a sample, on the console


class Record:
    """The reports of one start of a run."""

    def __init__(self, config: TrainConfig, run: RunDirectory, state: TrainState, tokenizer: Tokenizer) -> None:
        self.config, self.run, self.state, self.tokenizer = config, run, state, tokenizer
        self.steps = Steps(state.step, state.steps)
        self.batch_tokens = config.training.batch_tokens
        self.flops = flops_per_token(state.model.config, parameter_counts(state.model)["total"])
        self.peak = peak_flops(state.compute.name, state.compute.precision)
        self.first, self.logged = state.step, state.step
        self.trained = self.interval = 0.0
        """Seconds inside training steps, over this start and since the last row."""

    def note(self, text: str) -> None:
        """A line on the console and in log.txt."""
        self.steps.note(text)
        with (self.run.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def took(self, duration: float) -> None:
        """Count the seconds of one step."""
        self.trained += duration
        self.interval += duration

    def due(self) -> bool:
        """Whether the step just done gets a row."""
        return self.state.step % self.config.tracking.log_every == 0 or self.state.step == self.state.steps

    def row(self, metrics: StepMetrics) -> None:
        """The row and the line of one step. Raises Diverged for a loss or gradient that is not finite."""
        state = self.state
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        # fp16's scaler skips a step whose gradient overflows; a loss that is not finite is never right.
        if not math.isfinite(loss) or not (math.isfinite(grad_norm) or state.scaler.is_enabled()):
            raise Diverged(
                f"step {state.step}: loss {loss}, gradient norm {grad_norm}; the last checkpoint is from before; "
                "a lower optimizer.lr or a longer schedule.warmup_steps is the usual remedy"
            )
        row = {"step": state.step, "tokens": state.step * self.batch_tokens, "loss": loss, "lr": metrics.lr}
        self.run.metrics.append(row | ({"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}))
        self.show(loss, grad_norm, metrics.lr)

    def show(self, loss: float, grad_norm: float, lr: float) -> None:
        """Speed to timing.jsonl, everything to the console."""
        state = self.state
        done = state.step - self.logged
        rate = done * self.batch_tokens / max(self.interval, 1e-9)
        left = (state.steps - state.step) * self.trained / max(1, state.step - self.first)
        mfu = rate * self.flops / self.peak if self.peak else None
        self.run.timing.append(
            {"step": state.step, "time": time.time(), "tokens_per_second": rate} | ({"mfu": mfu} if mfu else {})
        )
        self.logged, self.interval = state.step, 0.0
        facts = {"loss": f"{loss:.4f}"}
        if state.results:
            facts["val"] = f"{state.results['val_loss']:.4f}"
        facts |= {"lr": f"{lr:.2e}", "grad": f"{grad_norm:.2f}", "tok/s": amount(rate)}
        if mfu:
            facts["MFU"] = f"{100 * mfu:.1f}%"
        self.steps.show(state.step, facts | {"ETA": seconds(left)})

    def evaluation(self, results: dict[str, float]) -> None:
        """The row, the picture, the sample and the status of an evaluation."""
        state = self.state
        self.run.metrics.append({"step": state.step, "tokens": state.step * self.batch_tokens} | results)
        best = state.best is not None and state.best[1] == state.step
        train = f"  train {results['train_loss']:.4f}" if "train_loss" in results else ""
        self.note(
            f"step {state.step}  val {results['val_loss']:.4f} nats/token, {results['val_bpb']:.4f} bits/byte"
            f"{train}{'  best' if best else ''}"
        )
        self.draw()
        self.status("running")
        if self.config.tracking.sample_tokens:
            text = self.sample()
            folder = self.run.path / "samples"
            folder.mkdir(exist_ok=True)
            write_atomic(folder / f"step-{state.step:08d}.txt", text)
            lines = [visible(line) for line in text.splitlines() if line.strip()]
            self.steps.note("\n".join(f"  | {line[:100]}" for line in lines[:SHOWN_LINES]))

    def draw(self) -> None:
        """plots/loss.png."""
        from nanogpt.tracking.plots import draw_loss  # matplotlib: half a second that the first step needn't wait for

        draw_loss(read_rows(self.run.metrics.path), self.run.plot, self.run.path.name)

    def status(self, state: str) -> None:
        """status.json."""
        self.run.write_status(state, step=self.state.step, steps=self.state.steps, best=self.state.best)

    def sample(self) -> str:
        """A text from the model as it is; the same weights give the same text."""
        state = self.state
        device = state.compute.device
        generator = torch.Generator(device).manual_seed(seed_of(self.config.training.seed, "sample"))
        prompt = tokenizers.start_ids(self.tokenizer)
        draw = Draw(temperature=0.8, vocab_size=len(self.tokenizer.tokens))
        was_training = state.model.training
        state.model.eval()
        drawn = generate(state.model, prompt, self.config.tracking.sample_tokens, draw, generator)
        text = tokenizers.decode(self.tokenizer, list(drawn))
        state.model.train(was_training)
        return text
