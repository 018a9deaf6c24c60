"""Findings of the GPU check, and the files and tables that show them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nanogpt.benchmark.timing import MarkdownTable
from nanogpt.schema import ConfigModel

JSON, MARKDOWN = "gpu-check.json", "gpu-check.md"
Verdict = Literal["pass", "FAIL", "skip", "info"]


class Judgement(ConfigModel):
    """A finding and its verdict."""

    name: str
    verdict: Verdict
    found: str
    allowed: str = ""
    """Limit or floor that `found` is compared with."""
    numbers: dict[str, float] = Field(default_factory=dict[str, float])
    """For the JSON file, in SI units."""


class PartResult(ConfigModel):
    """All findings of one part."""

    name: str
    seconds: float
    rows: tuple[Judgement, ...]
    remedy: str = ""
    """The advice that is printed after a failure."""

    @property
    def failed(self) -> bool:
        return any(row.verdict == "FAIL" for row in self.rows)


def judge(name: str, passed: bool, found: str, allowed: str = "", **numbers: float) -> Judgement:
    return Judgement(name=name, verdict="pass" if passed else "FAIL", found=found, allowed=allowed, numbers=numbers)


def make_table(parts: Sequence[PartResult]) -> MarkdownTable:
    rows = [(part.name, row.name, row.verdict, row.found, row.allowed) for part in parts for row in part.rows]
    return MarkdownTable(("part", "finding", "verdict", "found", "allowed"), rows)


def summarize(parts: Sequence[PartResult]) -> str:
    """Return how many parts failed, and the advice for each."""
    failed = [part for part in parts if part.failed]
    if not failed:
        return f"all {len(parts)} parts passed"
    lines = [f"{len(failed)} of {len(parts)} parts failed:"]
    return "\n".join([*lines, *(f"  {part.name}: {part.remedy}" for part in failed)])


def summarize_as_dict(header: dict[str, Any], parts: Sequence[PartResult]) -> dict[str, Any]:
    """Return the content of gpu-check.json."""
    passed = not any(part.failed for part in parts)
    return header | {"passed": passed, "parts": [part.model_dump() for part in parts]}


def write_files(folder: Path, header: dict[str, Any], parts: Sequence[PartResult]) -> None:
    """Write gpu-check.json and gpu-check.md. Called after each part, so that a killed check leaves what it found."""
    folder.mkdir(parents=True, exist_ok=True)
    content = summarize_as_dict(header, parts)
    (folder / JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    title = f"# GPU check, {header['date']}\n\n{header['machine']}"
    text = f"{title}\n\n{make_table(parts).markdown()}\n\n{summarize(parts)}\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
