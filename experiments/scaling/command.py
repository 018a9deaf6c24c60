"""`nanogpt scaling`: the best model size for a budget of FLOPs, by published laws or from your own runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.scaling.laws import Optimum, find_optimum, find_optimum_of_size, published_tokens
from experiments.scaling.runs import ScalingRun, read_finished_runs
from nanogpt.config import LawConfig, ScalingConfig
from nanogpt.console import print_text
from nanogpt.files import write_atomic
from nanogpt.formatting import format_count, format_table
from nanogpt.json_output import print_result
from nanogpt.output_paths import check_output_folder

if TYPE_CHECKING:
    from experiments.scaling.fit import Parabola

CONSTANTS = ("E", "A", "B", "alpha", "beta")
Interval = tuple[float, float]


@dataclass(frozen=True)
class Optima:
    """The best sizes of budgets by a published law."""

    law: LawConfig
    optima: list[Optimum]

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows."""
        optima = [
            asdict(optimum) | {"tokens_by_approach_2": published_tokens(optimum.n_params)} for optimum in self.optima
        ]
        return {"law": self.law, "optima": optima}


def run_scaling(config: ScalingConfig) -> int:
    """Print what the config asks for. Return 0."""
    if config.runs is not None:
        print_result(config.format, fit_study(config, config.runs), print_study)
    else:
        print_result(config.format, Optima(config.law, find_optima(config)), print_optima)
    return 0


def find_optima(config: ScalingConfig) -> list[Optimum]:
    """Return the optimum of a model size or of a budget, else those of a range of budgets."""
    if config.n_params is not None:
        return [find_optimum_of_size(config.law, config.n_params)]
    budgets = [10.0**exponent for exponent in range(17, 27)] if config.budget is None else [config.budget]
    return [find_optimum(config.law, budget) for budget in budgets]


def print_optima(found: Optima) -> None:
    """Print the best sizes of budgets, C = 6 N D, with the tokens that approach 2 gives for them."""
    rows = [
        (
            f"{optimum.flops:.3g}",
            format_count(optimum.n_params),
            format_count(optimum.tokens),
            f"{optimum.tokens / optimum.n_params:.1f}",
            f"{optimum.loss:.3f}",
            format_count(published_tokens(optimum.n_params)),
        )
        for optimum in found.optima
    ]
    columns = ("FLOPs", "parameters", "tokens", "tokens per parameter", "loss", "tokens by approach 2")
    constants = ", ".join(f"{name} {getattr(found.law, name):g}" for name in CONSTANTS)
    print_text(format_table(f"the best of a budget: {constants}", columns, rows))


@dataclass(frozen=True)
class ScalingStudy:
    """Results of a scaling study, as in scaling.json. Intervals hold 90 % of the resamples."""

    runs: list[ScalingRun]
    flops_per_parameter_token: float
    minima: list[Optimum]
    """Minima of the parabolas, for each budget where it lies inside the trained sizes."""
    exponent: float | None
    """Exponent of the best number of parameters over the budget, fitted to the minima."""
    law: dict[str, float]
    law_intervals: dict[str, Interval]
    next: Optimum
    """The law's prediction for a budget that was not trained."""
    next_intervals: dict[str, Interval]


@dataclass(frozen=True)
class FittedStudy:
    """A scaling study, the parabolas of its budgets, and the files that were written."""

    study: ScalingStudy
    curves: "Sequence[Parabola]"
    files: tuple[Path, ...]

    def json_fields(self) -> dict[str, Any]:
        """Return what `format=json` shows: the content of scaling.json, and the budgets."""
        budgets = [
            {"flops": curve.flops, "n_params": [run.n_params for run in curve.runs], "optimum": curve.optimum}
            for curve in self.curves
        ]
        return asdict(self.study) | {"budgets": budgets, "files": self.files}


def fit_study(config: ScalingConfig, pattern: str) -> FittedStudy:
    """Fit, and write scaling.json and its plots. Raises BadInput for too few runs before anything is written."""
    from experiments.plots.scaling import scaling_plot
    from experiments.scaling import fit  # scipy: half a second, only for fits
    from nanogpt.tracking.plots import PLOT_FORMATS

    check_output_folder("out", config.out)
    runs = read_finished_runs(pattern)
    fit.check_enough_runs(runs)
    budget = config.budget or 10 * max(run.flops for run in runs)
    factor, law, curves = fit.flops_per_parameter_token(runs), fit.fit_law(runs), fit.fit_parabolas(runs)
    laws = fit.bootstrap_laws(runs, law, config.bootstrap, config.seed)
    predicted = [find_optimum(sample, budget, factor) for sample in laws]
    minima = [curve.optimum for curve in curves if curve.optimum]
    line = fit.fit_power_law(minima)
    found = ScalingStudy(
        runs=runs,
        flops_per_parameter_token=factor,
        minima=minima,
        exponent=line and line[0],
        law=law.model_dump(),
        law_intervals={name: fit.percentile_interval([getattr(sample, name) for sample in laws]) for name in CONSTANTS},
        next=find_optimum(law, budget, factor),
        next_intervals={
            name: fit.percentile_interval([getattr(one, name) for one in predicted])
            for name in ("n_params", "tokens", "loss")
        },
    )
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "scaling.json", json.dumps(asdict(found), indent=1) + "\n")
    plot = scaling_plot(curves, line, found.next, found.next_intervals["n_params"])
    for kind in PLOT_FORMATS:
        write_atomic(folder / f"scaling.{kind}", plot.render(kind))
    return FittedStudy(found, curves, tuple(folder / f"scaling.{kind}" for kind in ("json", *PLOT_FORMATS)))


def print_study(fitted: FittedStudy) -> None:
    """Print three tables: budgets, law, prediction. Below them are the files."""
    found = fitted.study
    rows: list[tuple[str, ...]] = []
    for curve in fitted.curves:
        best = curve.optimum
        sizes = (
            f"{len(curve.runs)} runs, {format_count(curve.runs[0].n_params)} to {format_count(curve.runs[-1].n_params)}"
        )
        least = (
            (format_count(best.n_params), format_count(best.tokens), f"{best.loss:.4f}")
            if best
            else ("outside", "", "")
        )
        rows.append((f"{curve.flops:.3g}", sizes, *least))
    columns = ("FLOPs", "parameters", "best parameters", "tokens", "loss")
    exponent = f": best parameters ~ FLOPs^{found.exponent:.2f}" if found.exponent is not None else ""
    print_text(format_table(f"parabola of each budget{exponent}", columns, rows))
    low_high = found.law_intervals
    constants = [(name, f"{found.law[name]:.4g}", format_interval(low_high[name])) for name in CONSTANTS]
    print_text()
    print_text(format_table("L(N, D) = E + A / N^alpha + B / D^beta", ("constant", "fit", "90 % interval"), constants))
    ahead, spread = found.next, found.next_intervals
    facts = [
        ("parameters", format_count(ahead.n_params), format_interval(spread["n_params"])),
        ("tokens", format_count(ahead.tokens), format_interval(spread["tokens"])),
        ("loss, nats/token", f"{ahead.loss:.4f}", format_interval(spread["loss"])),
    ]
    print_text()
    print_text(
        format_table(f"the best of {ahead.flops:.3g} FLOPs, predicted", ("", "prediction", "90 % interval"), facts)
    )
    print_text("\n" + "\n".join(map(str, fitted.files)))


def format_interval(ends: Interval) -> str:
    return " to ".join(f"{end:.4g}" if end < 1000 else format_count(end) for end in ends)
