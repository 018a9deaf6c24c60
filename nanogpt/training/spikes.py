"""Steps whose loss or gradient norm stands out from those before it; nothing is done about them but telling."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

WINDOW, FEWEST, DEVIATIONS = 128, 32, 6.0


@dataclass
class Spikes:
    """The last losses and gradient norms, and how many of all so far stood out."""

    losses: list[float] = field(default_factory=list[float])
    norms: list[float] = field(default_factory=list[float])
    count: int = 0

    def observe(self, loss: float, grad_norm: float) -> str | None:
        """Take one step's numbers; returns a line about them when one is above mean + 6 deviations of the last 128."""
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
    """Whether a value is far above the past ones; False while there are few."""
    if len(past) < FEWEST:
        return False
    mean = math.fsum(past) / len(past)
    return value > mean + DEVIATIONS * math.sqrt(math.fsum((one - mean) ** 2 for one in past) / (len(past) - 1))
