"""Reference curves in a report: which runs stay inside a band, and the curves of the study itself."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.document import Block, Cell, Heading, Note, TableBlock
from experiments.ranking import SeedGroup
from experiments.results import RunResult
from nanogpt.errors import BadInput, one_line
from nanogpt.reference import BAND_LEVEL, MIN_SEEDS, Reference, make_reference

MAX_DIFFERENCES = 5  # keys that are named


def check_runs(references: Sequence[Reference], results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Return, for each run that a reference applies to, its evaluations outside the band, as report.json shows them."""
    return [
        {
            "run": str(result.path),
            "reference": reference.name,
            "compared": sum(step in reference.limits for step in curve),
            "outside": [
                {"step": step, "side": side, "val_loss": curve[step], "low": low, "high": high}
                for step, side in reference.find_outside(curve).items()
                for low, high in [reference.limits[step]]
            ],
        }
        for result in results
        for reference in references
        if (curve := loss_curve(result)) and reference.applies_to(result.config, result.measurement)
    ]


def loss_curve(result: RunResult) -> dict[int, float]:
    return {int(row["step"]): row["val_loss"] for row in result.evals}


def reference_blocks(references: Sequence[Reference], results: Sequence[RunResult]) -> Iterator[Block]:
    """Yield which runs are inside the band, or why no run can be compared; nothing without a reference."""
    if not references:
        return
    first, checked = references[0], check_runs(references, results)
    yield Heading(f"Reference: {one_line(first.name)}")
    if not checked:
        differences = first.find_differences(results[0].config)
        more = f" and {len(differences) - MAX_DIFFERENCES} more" if len(differences) > MAX_DIFFERENCES else ""
        why = ", ".join(differences[:MAX_DIFFERENCES]) + more or "other data, tokenizer, evaluated windows or precision"
        yield Note(f"No run has the settings of this reference: {why}.", warning=True)
        return
    rows: list[list[Cell]] = []
    for row in checked:
        outside = [
            "step {step:,}: {val_loss:.4f}, {side} {low:.4f} to {high:.4f}".format_map(at) for at in row["outside"]
        ]
        inside = row["compared"] - len(outside)
        rows.append(
            [Cell(one_line(row["run"], 120)), Cell(f"{inside} of {row['compared']}", inside), Cell("; ".join(outside))]
        )
    yield TableBlock(("run", "evaluations inside", "outside"), rows)
    yield Note(
        f"The band is a {BAND_LEVEL:.0%} prediction interval for a run with another seed, at all evaluations together, "
        f"from {len(first.seeds)} seeds. The other runs have other settings or data."
    )


def make_references(name: str, groups: Sequence[SeedGroup]) -> list[Reference]:
    """Return a curve for each setting with enough finished seeds, none of them diverged. Raises BadInput."""
    found: list[Reference] = []
    for group in groups:
        curves = {result.config.training.seed: loss_curve(result) for result in group.finished}
        start = group.first.starts[-1] if group.first.starts else {}
        made = {key: start.get(key) for key in ("git", "packages", "python", "device")}
        made["git"] = (made["git"] or {}).get("commit")
        if not group.diverged and (curve := make_reference(name, group.first.config, group.measurement, curves, made)):
            found.append(curve)
    if not found:
        raise BadInput(f"format=reference: no setting has {MIN_SEEDS} finished seeds and none that diverged")
    return found
