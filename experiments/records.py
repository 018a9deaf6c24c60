"""The numbers of a report as plain values with stable keys, unrounded: report.json, and its tables as CSV.

docs/analysis.md lists the keys.
"""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.causes import find_causes
from experiments.cost import study_cost
from experiments.ranking import Ranking, SeedGroup, VariedKey, find_varied_keys
from experiments.results import RunResult
from experiments.sweep_lines import split_into_lines
from nanogpt.config import Metric
from nanogpt.formatting import escape_control_chars, format_value
from nanogpt.metrics_file import Row
from nanogpt.statistics import mean_or_none, sum_or_none

Record = dict[str, Any]
METRICS: dict[Metric, str] = {  # with the key of half of the 95 % interval
    "val_loss": "val_loss_ci95",
    "best_val_loss": "best_val_loss_ci95",
    "val_bpb": "val_bpb_ci95",
    "best_val_bpb": "best_val_bpb_ci95",
}
CURVES = {"train": ("step", "tokens", "loss"), "eval": ("step", "tokens", "val_loss", "val_bpb")}


def describe_run(result: RunResult) -> Record:
    """Return the state, losses and cost of one run."""
    return {
        "seed": result.config.training.seed,
        "state": result.status.state,
        "why": result.status.why,
        "step": result.step,
        "steps": result.status.steps,
        "tokens": result.tokens,
        **{metric: result.value(metric) for metric in METRICS},
        "train_seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        **asdict(result.cost),
    }


def describe_setting(setting: SeedGroup, ranking: Ranking, varied: Sequence[VariedKey]) -> Record:
    """Return one row of the ranking. A setting without a finished run has neither a rank nor losses."""
    ranked = setting in ranking.ranked
    finished = setting.finished
    record: Record = {
        "ranking": ranking.title,
        "rank": ranking.ranked.index(setting) + 1 if ranked else None,
        **{key: setting.values.get(key) for axis in varied for key in (axis.key, *axis.others)},
        "attempt": setting.attempt,
        "seeds": len(setting.results),
        "finished": len(finished),
        "diverged": setting.diverged,
    }
    for metric, interval in METRICS.items():
        loss = setting.loss(metric) if finished else None
        record |= {metric: loss and loss.mean, interval: loss and loss.half}
    verdict = ranking.verdict(setting)
    record |= {
        "difference": verdict and verdict.difference,
        "difference_ci95": verdict and verdict.half,
        "verdict": verdict and verdict.kind,
        "seeds_needed": verdict and verdict.seeds,
    }
    return record | {
        "step": mean_or_none(result.step for result in setting.counted),
        "tokens": mean_or_none(result.tokens for result in setting.counted),
        "train_seconds": mean_or_none(result.seconds for result in setting.counted),
        "tokens_per_second": mean_or_none(result.tokens_per_second for result in setting.counted),
        "device_seconds": sum_or_none(result.device_seconds for result in setting.results if result.step),
        **asdict(study_cost(setting.results)),
    }


def describe_lines(ranking: Ranking) -> list[Record]:
    """Return the best and the highest stable value of each line of a sweep; empty if it has no lines."""
    sweep, metric = split_into_lines(ranking.groups, find_varied_keys(ranking.groups)), ranking.metric
    records: list[Record] = []
    if sweep is None:
        return records
    for line in sweep.lines:
        best = line.best(metric)
        loss = best and best.loss(metric)
        fixed = {axis.key: axis.value(line.settings[0]) for axis in (sweep.panel, sweep.line) if axis}
        ends = {"best": best, "highest_stable": line.highest_stable, "diverged_from": line.first_diverged}
        values = {name: setting and sweep.x.value(setting) for name, setting in ends.items()}
        result = {metric: loss and loss.mean, METRICS[metric]: loss and loss.half}
        records.append({"ranking": ranking.title, **fixed, "key": sweep.x.key, **values, **result})
    return records


def describe_ranking(ranking: Ranking, varied: Sequence[VariedKey]) -> Record:
    """Return the settings of a ranking, its lines and its causes."""
    settings = [(setting, describe_setting(setting, ranking, varied)) for setting in ranking.groups]
    return {
        "title": ranking.title,
        "metric": ranking.metric,
        "comparable_in_nats": ranking.in_nats,
        "best_corrected": ranking.verdicts and ranking.verdicts.corrected_mean,
        "settings": [
            {key: value for key, value in record.items() if key != "ranking"}
            | {"runs": [str(result.path) for result in setting.results]}
            for setting, record in settings
        ],
        "lines": describe_lines(ranking),
        "causes": find_causes(ranking, find_varied_keys(ranking.groups)),
    }


def to_json(
    title: str,
    results: Sequence[RunResult],
    rankings: Sequence[Ranking],
    notes: Sequence[str],
    against_reference: Sequence[Record],
) -> str:
    """Return everything that a report knows. Numbers that aren't known are null."""
    varied = find_varied_keys([setting for ranking in rankings for setting in ranking.groups])
    runs = [
        {"path": str(result.path), **describe_run(result)}
        | {"config": result.config.model_dump(mode="json")}
        | {
            name: to_columns(getattr(result, rows), CURVES[name])
            for name, rows in (("train", "train"), ("eval", "evals"))
        }
        for result in results
    ]
    content = {
        "title": title,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "notes": list(notes),
        "cost": asdict(study_cost(results)),
        "varied": [{"key": axis.key, "together": list(axis.others)} for axis in varied],
        "rankings": [describe_ranking(ranking, varied) for ranking in rankings],
        "against_reference": list(against_reference),
        "runs": runs,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_columns(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, list[float | None]]:
    return {key: [row.get(key) for row in rows] for key in keys}


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as a table. Unknown values are empty cells; a list is written as on the command line."""
    file = io.StringIO()
    writer = csv.DictWriter(file, dict.fromkeys(key for record in records for key in record), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: to_cell(value) for key, value in record.items()} for record in records)
    return file.getvalue()


def to_cell(value: object) -> object:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return escape_control_chars(format_value(value))
