"""The code that runs were made with, and differences between versions, as far as provenance.json and git tell."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path
from typing import Any

from experiments.document import Block, Cell, Code, Note, TableBlock
from experiments.results import RunResult, Start
from launch.study import RECORDS
from nanogpt.errors import one_line
from nanogpt.files import list_entries, read_text
from nanogpt.provenance import compute_code_digest, run_git

MAX_DIFF_LENGTH = 60_000  # characters of a difference that are shown
PARTS = ("nanogpt", "cli", "conf")  # what a training is made of


def code_table(results: Sequence[RunResult]) -> TableBlock | None:
    """Return the versions of code and machine of the runs' last starts; None if nothing is known."""
    groups: dict[tuple[str, ...], int] = {}
    for result in results:
        if result.starts:
            facts = code_facts(result.starts[-1])
            groups[facts] = groups.get(facts, 0) + 1
    titles = ("commit", "uncommitted changes", "code", "torch", "device", "ranks")
    rows = [[Cell(str(count), count), *(Cell(fact) for fact in facts)] for facts, count in groups.items()]
    return TableBlock(("runs", *titles), rows) if rows else None


def code_facts(start: Start) -> tuple[str, ...]:
    """Return commit, changed files, digest of nanogpt/, torch, device and ranks of a start."""
    packages, about = read_section(start, "packages"), read_section(start, "arithmetic")
    files = changed_files(start)
    few = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    rest = (packages.get("torch", "-"), start.get("device", "-"), about.get("ranks", "-"))
    digest = one_line(start.get("code", "-"))[:12]
    return (read_commit(start)[:12] or "-", one_line(few or "-", 200), digest, *(one_line(text, 60) for text in rest))


def read_commit(start: Start) -> str:
    """Return the commit of a start's checkout, if it looks like one."""
    text = str(read_section(start, "git").get("commit", ""))
    return text if re.fullmatch(r"[0-9a-f]{7,64}", text) else ""


def changed_files(start: Start) -> list[str]:
    lines = read_section(start, "git").get("changed")
    return [str(line)[3:] for line in lines] if isinstance(lines, list) else []  # pyright: ignore[reportUnknownVariableType]


def uncommitted_diff(start: Start) -> str:
    return str(read_section(start, "git").get("diff") or "")


def read_section(start: Start, key: str) -> dict[str, Any]:
    value = start.get(key)
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def code_difference(label: str, result: RunResult, other_label: str, other: RunResult) -> Iterator[Block]:
    """Yield the difference between the code of two runs: of the code itself if available, else what git knows."""
    start, end = result.starts[-1], other.starts[-1]
    same = start.get("code") == end.get("code")
    if same and read_commit(start) == read_commit(end) and uncommitted_diff(start) == uncommitted_diff(end):
        yield Note(f"{label} and {other_label}: the same code, commit {read_commit(start)[:12] or 'unknown'}.")
        return
    words = "nanogpt/ is the same" if same else "nanogpt/ differs"
    ends = [f"{name} {read_commit(facts)[:12] or 'unknown'}" for name, facts in ((label, start), (other_label, end))]
    yield Note(f"{label} and {other_label}: {words}; commits: {', '.join(ends)}.", warning=not same)
    before, after = find_code(result), find_code(other)
    if before and after and not same:
        yield from diff_folders(before, after, f"difference from {label} to {other_label}")
        return
    if read_commit(start) and read_commit(end) and read_commit(start) != read_commit(end):
        yield from diff_commits(read_commit(start), read_commit(end))
    for name, facts in ((label, start), (other_label, end)):
        if text := uncommitted_diff(facts):
            yield Note(
                f"{name} was started with uncommitted changes in {one_line(', '.join(changed_files(facts)), 300)}."
            )
            yield Code(text[:MAX_DIFF_LENGTH], f"uncommitted changes of {name}")


def find_code(result: RunResult) -> Path | None:
    """Return a folder with exactly the code of a run's last start: a frozen copy or this checkout. None if gone."""
    folders = [folder / RECORDS / "code" for folder in (result.path, result.path.parent)]
    frozen = [path for folder in folders for path in list_entries(folder)]
    for path in (*frozen, Path(__file__).parents[1]):
        with suppress(OSError):
            if compute_code_digest(path.resolve() / "nanogpt") == result.starts[-1].get("code"):
                return path
    return None


def diff_folders(before: Path, after: Path, title: str) -> Iterator[Block]:
    """Yield the difference between two copies of the code: lines per file, then all of it."""
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
        old, new = read_file_lines(before / name), read_file_lines(after / name)
        lines = list(unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm=""))
        if lines:
            plus, minus = (sum(line.startswith(sign) for line in lines[2:]) for sign in "+-")
            short.append(f"{name}: +{plus} -{minus}")
            text += lines
    yield Code("\n".join(short))
    yield Code("\n".join(text)[:MAX_DIFF_LENGTH], title)


def read_file_lines(path: Path) -> list[str]:
    try:
        return read_text(path, "replace").splitlines()
    except OSError:
        return []


def diff_commits(before: str, after: str) -> Iterator[Block]:
    """Yield git's difference between two commits, if this checkout has both."""
    folder = Path(__file__).parent
    words = ("diff", "--no-color", "--no-ext-diff")
    stat = run_git(folder, *words, "--stat", before, after, "--", ":/*.py", ":/*.yaml")
    if stat is None:
        yield Note("This checkout doesn't have both commits, so git can't tell the difference between them.")
        return
    yield Code(stat.rstrip() or "no Python or YAML file differs")
    if text := run_git(folder, *words, before, after, "--", ":/*.py", ":/*.yaml"):
        yield Code(text[:MAX_DIFF_LENGTH], f"difference from {before[:12]} to {after[:12]}")
