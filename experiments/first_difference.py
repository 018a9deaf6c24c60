"""First recorded step at which two runs differ, and the tensors that differ in their checkpoints."""

from dataclasses import dataclass
from math import inf

from experiments.ranking import SeedGroup
from experiments.results import RunResult
from nanogpt.errors import BadCheckpoint
from nanogpt.run_directory import RunDirectory

QUANTITIES = ("lr", "loss", "grad_norm", "train_loss", "val_loss", "val_bpb")


@dataclass(frozen=True)
class TensorDifference:
    """Difference between two checkpoints of the same step."""

    step: int
    tensors: int
    differing: int
    largest: str | None
    """Tensor with the largest difference relative to its norm; None if none differs."""
    relative: float


@dataclass(frozen=True)
class FirstDifference:
    """Difference between two runs with the same seed."""

    sides: tuple[str, str]
    seed: int
    rows: int
    """Rows that both have."""
    step: int | None
    """First step with a row that differs; None if none does."""
    values: dict[str, tuple[float, float]]
    """Quantities that differ there."""
    checkpoint: TensorDifference | None
    """None if the sides have other settings, or no checkpoint of the same step."""

    def describe(self) -> str:
        """Return the difference in a sentence or two."""
        text = f"all {self.rows:,} rows that both recorded are equal."
        if self.step is not None:
            listed = ", ".join(f"{name} {a:.6g} and {b:.6g}" for name, (a, b) in self.values.items())
            text = f"the first recorded difference is at step {self.step:,}: {listed}."
        if found := self.checkpoint:
            text += f" Checkpoint of step {found.step:,}: differing tensors {found.differing} of {found.tensors}"
            text += f", {found.largest} most, by {found.relative:.2g} of its norm." if found.largest else "."
        return f"{' and '.join(self.sides)}, seed {self.seed}: {text}"


def find_first_difference(names: tuple[str, str], sides: tuple[SeedGroup, SeedGroup]) -> FirstDifference | None:
    """Return the first difference between runs of the lowest seed that both sides have; None without one."""
    runs, others = ({result.config.training.seed: result for result in side.results} for side in sides)
    seed = min(runs.keys() & others.keys(), default=None)
    if seed is None:
        return None
    pair = runs[seed], others[seed]
    rows, other_rows = map(keyed_rows, pair)
    both = sorted(rows.keys() & other_rows.keys())
    step, values = None, dict[str, tuple[float, float]]()
    for key in both:
        a, b = rows[key], other_rows[key]
        values = {name: (a[name], b[name]) for name in QUANTITIES if name in a and name in b and a[name] != b[name]}
        if values:
            step = key[0]
            break
    tensors = compare_checkpoints(*pair) if sides[0].values == sides[1].values else None
    return FirstDifference(names, seed, len(both), step, values, tensors)


def keyed_rows(result: RunResult) -> dict[tuple[int, bool], dict[str, float]]:
    """Return the rows of a run by step; a training row comes before an evaluation at its step."""
    return {(int(row["step"]), "val_loss" in row): row for row in (*result.train, *result.evals)}


def compare_checkpoints(a: RunResult, b: RunResult) -> TensorDifference | None:
    """Return the difference at the first step of which both runs have a good checkpoint; None without one."""
    from nanogpt.checkpoint import load_verified  # imports torch

    ours, theirs = (RunDirectory(result.path).checkpoints for result in (a, b))
    for step in sorted(set(ours.steps()) & set(theirs.steps())):
        try:
            found = [load_verified(run.path(step)) for run in (ours, theirs)]
        except BadCheckpoint:
            continue
        before, after = (
            {**part.model, **{f"optimizer {name}": tensor for name, tensor in part.optimizer.items()}} for part in found
        )
        shares = dict.fromkeys(sorted(before.keys() ^ after.keys()), inf)
        for name in sorted(before.keys() & after.keys()):
            x, y = before[name].double(), after[name].double()
            if not x.equal(y):
                shares[name] = float((x - y).norm() / x.norm().clamp_min(1e-300)) if x.shape == y.shape else inf
        largest = max(shares, key=lambda name: shares[name], default=None)
        return TensorDifference(step, len(before), len(shares), largest, shares[largest] if largest else 0.0)
    return None
