"""`nanogpt ab`: train two settings, or the code of two commits, with enough seeds to tell a given difference.

The verdict is appended to `ledger.jsonl` in runs_dir; the same command continues, and trains nothing twice.
"""

import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cli.quoting import format_override
from cli.sweep_request import read_sweep
from experiments.comparison import Comparison
from experiments.cost import study_cost
from experiments.document import Cell, TableBlock
from experiments.find import RunSelection, read_statuses
from experiments.ranking import SeedGroup, group_by_seed
from experiments.results import read_results
from experiments.tables import to_terminal
from nanogpt.child_process import CODE_ROOT, module_command
from nanogpt.config import AbConfig, TrainConfig
from nanogpt.console import print_text
from nanogpt.cost import Cost
from nanogpt.errors import BadCheckpoint, BadEnvironment, BadInput, Diverged, hint, one_line
from nanogpt.files import list_entries, read_text
from nanogpt.json_output import print_result
from nanogpt.provenance import code_digest, run_git
from nanogpt.reference import choose_reference
from nanogpt.statistics import mean
from nanogpt.verdicts import PLANNED_LEVEL, Verdict, count_seeds, describe_verdict

SIDES = ("base", "change")
FIRST_SEEDS = 3  # of each side, by which noise is estimated
LEDGER = "ledger.jsonl"


def run_ab(config: AbConfig) -> int:
    """Train both sides, print the verdict and append it to the ledger; without sides, print the ledger.

    Return 0, or the exit code of a training that stopped. Raises BadInput.
    """
    if not config.sides:
        print_result(config.format, read_ledger(Path(config.runs_dir)), print_ledger)
        return 0
    if len(config.sides) != 2:
        raise BadInput(f"sides={','.join(map(one_line, config.sides))}: two are needed, base and change")
    commits = [resolve_commit(side) for side in config.sides]
    words = [
        [*config.train, *([] if commit else split_settings(side))]
        for commit, side in zip(commits, config.sides, strict=True)
    ]
    for commit, own in zip(commits, words, strict=True):
        if commit is None and len(read_sweep("train", TrainConfig, own, multirun=True).points) != 1:
            raise BadInput(f"{one_line(' '.join(own))}: a sweep; a side is one setting")
    code = code_digest() if any(commits) else ""  # code that is edited makes other runs than a commit's
    key = json.dumps([[commit or code, own] for commit, own in zip(commits, words, strict=True)])
    name = f"ab-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    folders = [Path(config.runs_dir) / f"{name}-{side}" for side in SIDES]
    count = min(FIRST_SEEDS, config.max_seeds)
    with check_out(commits) as codes:
        while True:
            for side in zip(folders, words, codes, strict=True):
                if (exit_code := train_side(*side, count)) not in (0, Diverged.exit_code):
                    return exit_code
            sides = [(name, read_side(folder, count)) for name, folder in zip(SIDES, folders, strict=True)]
            comparison = Comparison(sides, config.metric, config.difference, level=PLANNED_LEVEL)
            if (needed := plan_seeds(comparison, config)) <= count:
                break
            count = needed
    entry = describe_test(config, commits, folders, comparison)
    append_entry(Path(config.runs_dir), entry)
    print_result(config.format, entry, print_entry)
    return 0


def resolve_commit(side: str) -> str | None:
    """Return the hash of a commit; None for settings. Raises BadInput for a commit that is not in this checkout."""
    if not side.strip() or "=" in side:
        return None
    found = run_git(CODE_ROOT, "rev-parse", "--verify", "--quiet", f"{side}^{{commit}}")
    if found is None:
        names = (run_git(CODE_ROOT, "for-each-ref", "--format=%(refname:short)") or "").split()
        raise BadInput(f"{one_line(side)}: no such commit in the checkout of this code{hint(side, names)}")
    return found.strip()


def split_settings(side: str) -> list[str]:
    """Return the settings in a text. Raises BadInput for a quote without an end."""
    try:
        return shlex.split(side)
    except ValueError as error:
        raise BadInput(f"{one_line(side)}: {one_line(error)}") from None


@contextmanager
def check_out(commits: list[str | None]) -> Generator[list[Path | None], None, None]:
    """Yield folders with the code of the commits; None for the code of this process. Raises BadEnvironment."""
    with tempfile.TemporaryDirectory(prefix="nanogpt-ab-") as folder:
        found = [Path(folder) / commit if commit else None for commit in commits]
        trees = {path for path in found if path}
        try:
            for path in trees:
                if run_git(CODE_ROOT, "worktree", "add", "--detach", "--quiet", str(path), path.name) is None:
                    raise BadEnvironment(f"git can't check out {path.name} in {folder}")
            yield found
        finally:
            for path in trees:
                run_git(CODE_ROOT, "worktree", "remove", "--force", str(path))


def train_side(folder: Path, words: list[str], code: Path | None, count: int) -> int:
    """Train seeds 1 to `count` of a side that are not trained yet. Return the exit code."""
    command = [sys.executable, str(code / "train.py")] if code else module_command("cli", "train")
    seeds = f"training.seed={','.join(map(str, range(1, count + 1)))}"
    where = [format_override("runs_dir", str(folder.parent)), f"name={folder.name}"]
    with subprocess.Popen([*command, "-m", *words, *where, seeds]) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the child has it too, and saves a checkpoint
                continue


def read_side(folder: Path, count: int) -> SeedGroup:
    """Return the runs of a side. Raises BadCheckpoint if they are not runs of one setting with all seeds."""
    runs = [path for path in list_entries(folder) if (path / "config.json").exists()]
    results, problems = read_results(read_statuses(RunSelection(runs, [folder], [folder], []))[0])
    groups = group_by_seed(results)
    if len(groups) != 1 or len(groups[0].results) < count:
        raise BadCheckpoint(
            f"{one_line(folder)}: not the runs of one setting: {one_line('; '.join(problems) or groups)}"
        )
    return groups[0]


def plan_seeds(comparison: Comparison, config: AbConfig) -> int:
    """Return the seeds per side that tell the difference, by the noise of the runs and of their reference curve; 0 if
    nothing is known about noise.
    """
    noise, (_, base) = comparison.verdicts.noise, comparison.sides[0]
    if noise is None:
        return 0
    variance, freedom = mean(noise.variances), noise.freedom[0]
    reference = choose_reference(base.first.config, base.measurement)
    if reference and comparison.used_metric == "val_loss":
        more = len(reference.seeds) - 1
        variance = (variance * freedom + reference.deviation[-1] ** 2 * more) / (freedom + more)
    return count_seeds(variance, config.difference, config.max_seeds, PLANNED_LEVEL)


def describe_test(
    config: AbConfig, commits: list[str | None], folders: list[Path], comparison: Comparison
) -> dict[str, Any]:
    """Return the entry of the ledger."""
    gap, groups = comparison.verdicts.gaps[1], [side for _, side in comparison.sides]
    verdict = gap and gap.verdict
    left = [name for name, side in comparison.sides if side.diverged or not side.finished]
    why = f"diverged: {' and '.join(left)}" if left else "not comparable"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hypothesis": config.hypothesis,
        **{
            name: {"side": side, "commit": commit, "runs": str(folder), "seeds": len(group.finished)}
            for name, side, commit, folder, group in zip(SIDES, config.sides, commits, folders, groups, strict=True)
        },
        "train": list(config.train),
        "metric": comparison.used_metric,
        "tolerance": config.difference,
        "verdict": verdict.kind if verdict else why,
        "difference": verdict and verdict.difference,
        "difference_ci95": verdict and verdict.half,
        "seeds_needed": verdict and verdict.seeds,
        "first_difference": next((found.describe() for found in comparison.first_differences), None),
        "cost": asdict(study_cost(result for group in groups for result in group.results)),
    }


def append_entry(runs_dir: Path, entry: Mapping[str, Any]) -> None:
    """Append a test to the ledger, unless its last entry is this one, repeated."""
    earlier = read_ledger(runs_dir)["tests"]
    if not earlier or earlier[-1] | {"time": entry["time"]} != entry:
        with open(runs_dir / LEDGER, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_ledger(runs_dir: Path) -> dict[str, Any]:
    """Return all tests, oldest first, and the number of lines that can't be read."""
    tests: list[dict[str, Any]] = []
    path = runs_dir / LEDGER
    lines = read_text(path, "replace").splitlines() if path.exists() else []
    for line in lines:
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and {*SIDES, "verdict"} <= found.keys():
                tests.append(found)
    return {"tests": tests, "unreadable_lines": len(lines) - len(tests)}


def print_ledger(ledger: Mapping[str, Any]) -> None:
    """Print one row per test."""
    rows: list[list[Cell]] = []
    priced = any(read_stored_cost(test.get("cost")).currency for test in ledger["tests"])
    for test in ledger["tests"]:
        sides = [test[name]["side"] or "(as it is)" for name in SIDES]
        cost = read_stored_cost(test.get("cost"))
        hours = "-" if cost.gpu_hours is None or cost.cpu_hours is None else f"{cost.gpu_hours + cost.cpu_hours:.3g}"
        what, seeds = test["hypothesis"] or " ".join(test["train"]), test["change"]["seeds"]
        words = (test["time"][:10], what, *sides, describe_difference(test), test["verdict"], seeds, hours)
        rows.append([Cell(one_line(word, 60)) for word in words] + ([Cell(cost.price)] if priced else []))
    titles = ("date", "hypothesis", *SIDES, "change - base", "verdict", "seeds", "device-hours", *["price"] * priced)
    print_text(to_terminal(TableBlock(titles, rows), "A/B tests"))


def read_stored_cost(stored: object) -> Cost:
    """Return the cost in a line of the ledger; unknown if it has none, as in earlier versions."""
    try:
        return TypeAdapter(Cost).validate_python(stored)
    except ValidationError:
        return Cost(None, None, None, None)


def describe_difference(test: Mapping[str, Any]) -> str:
    """Return e.g. `+0.0123 ± 0.0045`."""
    value, half = test["difference"], test["difference_ci95"]
    return "-" if value is None else f"{value:+.4f}" + ("" if half is None else f" ± {half:.4f}")


def print_entry(test: Mapping[str, Any]) -> None:
    """Print the verdict of a test."""
    words = test["verdict"]
    if test["difference"] is not None:
        half, seeds = test["difference_ci95"], test["seeds_needed"]
        words = describe_verdict(Verdict(test["verdict"], test["difference"], half, seeds))
    print_text(f"\nchange - base: {describe_difference(test)} ({test['metric']}): {words}")
    if test["first_difference"]:
        print_text(test["first_difference"])
    print_text("\n".join(["\nnext:", f"  nanogpt compare {test['base']['runs']} {test['change']['runs']}"]))
