"""Which code made which runs, and what differs between two states of it, as far as provenance.json and git know."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path
from typing import Any

from experiments.document import Block, Cell, Code, Note, Table
from experiments.results import Result, Start
from launch.study import RECORDS
from nanogpt.errors import one_line
from nanogpt.files import list_entries, read_text
from nanogpt.provenance import compute_code_digest, run_git

LONGEST = 60_000  # characters of a difference that are shown
PARTS = ("nanogpt", "cli", "conf")  # what a training is made of


def code_table(results: Sequence[Result]) -> Table | None:
    """The states of code and machine that runs were last started with; None where nothing is known."""
    groups: dict[tuple[str, ...], int] = {}
    for result in results:
        if result.starts:
            facts = code_facts(result.starts[-1])
            groups[facts] = groups.get(facts, 0) + 1
    titles = ("commit", "uncommitted changes", "code", "torch", "device", "ranks")
    rows = [[Cell(str(count), count), *(Cell(fact) for fact in facts)] for facts, count in groups.items()]
    return Table(("runs", *titles), rows) if rows else None


def code_facts(start: Start) -> tuple[str, ...]:
    """Of one start: commit, changed files, digest of nanogpt/, torch, device, ranks."""
    packages, about = section(start, "packages"), section(start, "arithmetic")
    files = changed(start)
    few = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    rest = (packages.get("torch", "-"), start.get("device", "-"), about.get("ranks", "-"))
    digest = one_line(start.get("code", "-"))[:12]
    return (commit(start)[:12] or "-", one_line(few or "-", 200), digest, *(one_line(text, 60) for text in rest))


def commit(start: Start) -> str:
    """The commit of a start's checkout, if it looks like one."""
    text = str(section(start, "git").get("commit", ""))
    return text if re.fullmatch(r"[0-9a-f]{7,64}", text) else ""


def changed(start: Start) -> list[str]:
    """Files with uncommitted changes."""
    lines = section(start, "git").get("changed")
    return [str(line)[3:] for line in lines] if isinstance(lines, list) else []  # pyright: ignore[reportUnknownVariableType]


def uncommitted(start: Start) -> str:
    """The uncommitted changes themselves."""
    return str(section(start, "git").get("diff") or "")


def section(start: Start, key: str) -> dict[str, Any]:
    """A part of a start's facts, empty where there is none."""
    value = start.get(key)
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def code_difference(label: str, one: Result, other_label: str, other: Result) -> Iterator[Block]:
    """Between the code of two runs' last starts: the code itself where it is at hand, else what git knows."""
    start, end = one.starts[-1], other.starts[-1]
    same = start.get("code") == end.get("code")
    if same and commit(start) == commit(end) and uncommitted(start) == uncommitted(end):
        yield Note(f"{label} and {other_label}: the same code, commit {commit(start)[:12] or 'unknown'}.")
        return
    words = "nanogpt/ is the same" if same else "nanogpt/ differs"
    ends = [f"{name} {commit(facts)[:12] or 'unknown'}" for name, facts in ((label, start), (other_label, end))]
    yield Note(f"{label} and {other_label}: {words}; commits: {', '.join(ends)}.", warning=not same)
    before, after = at_hand(one), at_hand(other)
    if before and after and not same:
        yield from written(before, after, f"difference from {label} to {other_label}")
        return
    if commit(start) and commit(end) and commit(start) != commit(end):
        yield from committed(commit(start), commit(end))
    for name, facts in ((label, start), (other_label, end)):
        if text := uncommitted(facts):
            yield Note(f"{name} was started with uncommitted changes in {one_line(', '.join(changed(facts)), 300)}.")
            yield Code(text[:LONGEST], f"uncommitted changes of {name}")


def at_hand(result: Result) -> Path | None:
    """A folder with the very code of a run's last start: what was frozen for its job, or this checkout."""
    folders = [place / RECORDS / "code" for place in (result.path, result.path.parent)]
    frozen = [path for folder in folders for path in list_entries(folder)]
    for path in (*frozen, Path(__file__).parents[1]):
        with suppress(OSError):
            if compute_code_digest(path.resolve() / "nanogpt") == result.starts[-1].get("code"):
                return path
    return None


def written(before: Path, after: Path, title: str) -> Iterator[Block]:
    """What differs between two copies of the code: lines of every file in short, then all of it."""
    names = {
        path.relative_to(root)
        for root in (before, after)
        for part in PARTS
        for path in (root / part).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    short: list[str] = []
    text: list[str] = []
    for name in sorted(names):
        old, new = content(before / name), content(after / name)
        lines = list(unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm=""))
        if lines:
            plus, minus = (sum(line.startswith(sign) for line in lines[2:]) for sign in "+-")
            short.append(f"{name}: +{plus} -{minus}")
            text += lines
    yield Code("\n".join(short))
    yield Code("\n".join(text)[:LONGEST], title)


def content(path: Path) -> list[str]:
    """The lines of a file; none where it isn't."""
    try:
        return read_text(path, "replace").splitlines()
    except OSError:
        return []


def committed(before: str, after: str) -> Iterator[Block]:
    """What git says between two commits, where this checkout has both."""
    folder = Path(__file__).parent
    words = ("diff", "--no-color", "--no-ext-diff")
    stat = run_git(folder, *words, "--stat", before, after, "--", ":/*.py", ":/*.yaml")
    if stat is None:
        yield Note("This checkout doesn't have both commits, so git can't tell the difference between them.")
        return
    yield Code(stat.rstrip() or "no Python or YAML file differs")
    if text := run_git(folder, *words, before, after, "--", ":/*.py", ":/*.yaml"):
        yield Code(text[:LONGEST], f"difference from {before[:12]} to {after[:12]}")
