"""Looks of a study with sweep.until: looks.json in its folder.

The losses that decided are stored, so the same command decides the same again.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanogpt.config import Metric
from nanogpt.files import from_json, read_text, write_atomic

FILE = "looks.json"


@dataclass
class LookLog:
    """Results of the looks of a study."""

    until: str
    metric: Metric
    end: str = ""
    """Reason for which no seeds are added any more; empty: there are looks to come."""
    seeds: int = 0
    """Seeds of the settings that were judged at the last look."""
    dropped: set[str] = field(default_factory=set[str])
    """Run directories of the settings that were found worse."""
    losses: dict[str, float] = field(default_factory=dict[str, float])
    """Loss of each run directory; infinite for a run that diverged."""

    def describe(self) -> str:
        """Return how to read the intervals of this study."""
        end = f"{self.end} with {self.seeds} seeds" if self.end else "not finished: the same command continues"
        return (
            f"seeds were added at looks (sweep.until={self.until}; {end}): intervals of differences hold at all looks "
            "together, and a setting that was worse at a look stays worse and gets no more seeds"
        )

    def write(self, study: Path) -> None:
        """Write looks.json. Raises OSError."""
        known = {name: loss if math.isfinite(loss) else None for name, loss in self.losses.items()}
        values = {"until": self.until, "metric": self.metric, "end": self.end, "seeds": self.seeds}
        write_atomic(study / FILE, json.dumps(values | {"dropped": sorted(self.dropped), "losses": known}, indent=1))


def read_looks(study: Path) -> LookLog | None:
    """Return the looks of a study; None if it has none that can be read."""
    path = study / FILE
    if not path.exists():
        return None
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        row: dict[str, Any] = from_json(read_text(path))
        losses = {str(name): math.inf if loss is None else float(loss) for name, loss in row["losses"].items()}
        dropped = {str(name) for name in row["dropped"]}
        return LookLog(str(row["until"]), row["metric"], str(row["end"]), int(row["seeds"]), dropped, losses)
    return None
