"""A replacement for training that takes no time."""

from collections.abc import Callable

from nanogpt.config import TrainConfig
from nanogpt.errors import BadData, Diverged
from nanogpt.run_directory import RunDirectory, locate_run


class PretendedTraining:
    """Records its calls. Writes `loss` at the step at which a run pauses or ends, or ends as `end` says."""

    steps = 9

    def __init__(self, end: Callable[[TrainConfig], BaseException | None] = lambda _: None) -> None:
        self.end, self.called = end, list[TrainConfig]()

    def __call__(self, config: TrainConfig) -> int:
        self.called.append(config)
        end = self.end(config)
        if isinstance(end, KeyboardInterrupt | BadData):
            raise end
        run, step = RunDirectory(locate_run(config)), config.last_step(self.steps)
        (run.path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        if end is not None:
            run.write_status("diverged" if isinstance(end, Diverged) else "failed", step=1, steps=self.steps)
            (run.path / "log.txt").write_text(f"2026-01-01 00:00:00  {end}\n")
            raise end
        run.metrics.append({"step": step, "val_loss": self.loss(config, step / self.steps)})
        run.write_status("finished" if step == self.steps else "paused", step=step, steps=self.steps)
        return 0

    def loss(self, config: TrainConfig, share: float) -> float:
        """Return the loss after this share of the steps."""
        raise NotImplementedError
