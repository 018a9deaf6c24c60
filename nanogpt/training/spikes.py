"""Detection of steps with an unusually high loss or gradient norm. They are reported and counted, nothing else."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

WINDOW, FEWEST, DEVIATIONS = 128, 32, 6.0


@dataclass
class Spikes:
    """The last losses and gradient norms, and the number of spikes so far."""

    losses: list[float] = field(default_factory=list[float])
    norms: list[float] = field(default_factory=list[float])
    count: int = 0

    def observe(self, loss: float, grad_norm: float) -> str | None:
        """Add a step. Returns a message if a value is above mean + 6 standard deviations of the last 128, else None."""
        lines = [
            f"{name} {value:.4g}, {math.fsum(past) / len(past):.4g} on average over the last {len(past)} steps"
            for name, value, past in (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms))
            if math.isfinite(value) and is_outlier(value, past)
        ]
        self.count += bool(lines)
        self.losses = [*self.losses, loss][-WINDOW:]
        self.norms = [*self.norms, grad_norm][-WINDOW:] if math.isfinite(grad_norm) else self.norms
        return "; ".join(lines) or None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_outlier(value: float, past: list[float]) -> bool:
    """Return whether a value is far above the past ones; False with fewer than FEWEST."""
    if len(past) < FEWEST:
        return False
    mean = math.fsum(past) / len(past)
    return value > mean + DEVIATIONS * math.sqrt(math.fsum((number - mean) ** 2 for number in past) / (len(past) - 1))
