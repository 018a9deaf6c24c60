"""HellaSwag (Zellers et al. 2019): choose the right one of four endings of a text.

The metrics of lm-evaluation-harness' `hellaswag`: `acc` chooses the ending of the highest likelihood, `acc_norm` that
of the highest likelihood per character.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nanogpt.errors import BadData, one_line
from nanogpt.evaluation.documents import BenchmarkSource, JsonObject, read_text_file
from nanogpt.evaluation.scoring import Request, Score, build_request
from nanogpt.evaluation.statistics import Metric, compute_mean
from nanogpt.tokenizer import Tokenizer

ENDINGS = 4


class HellaSwagItem(NamedTuple):
    """A text, its possible endings, and the index of the right one."""

    query: str
    endings: list[str]
    gold: int


class HellaSwag:
    """The validation split; answers of the test split are not public."""

    name = "hellaswag"

    def __init__(self, given: str | None, limit: int | None) -> None:
        endings = (".txt", ".txt.bz2")
        source = BenchmarkSource(f"eval.{self.name}", given, "Rowan/hellaswag", None, "validation", endings)
        self.documents = list(islice(read_items(source), limit))

    def requests(self, tokenizer: Tokenizer) -> Iterator[Request]:
        for item in self.documents:
            yield build_request(tokenizer, item.query, [" " + ending for ending in item.endings])

    def metrics(self, scores: Sequence[Sequence[Score]]) -> dict[str, Metric]:
        """Return {"acc", "acc_norm"}. Of equal likelihoods the first counts as the highest."""
        raw: list[float] = []
        normalised: list[float] = []
        for item, item_scores in zip(self.documents, scores, strict=True):
            nats = [score.log_likelihood for score in item_scores]
            per_character = [n / max(1, len(ending)) for n, ending in zip(nats, item.endings, strict=True)]
            raw.append(float(nats.index(max(nats)) == item.gold))
            normalised.append(float(per_character.index(max(per_character)) == item.gold))
        return {"acc": compute_mean(raw), "acc_norm": compute_mean(normalised)}


def read_items(source: BenchmarkSource) -> Iterator[HellaSwagItem]:
    """Yield the items of text files or tables. Raises BadData, BadEnvironment."""
    files = source.local_files()
    if files and not files[0].name.endswith((".jsonl", ".parquet")):
        for path in files:
            yield from parse_six_lines(path)
    else:
        for where, row in source.read_rows():
            yield parse_item(source, row, where)


def parse_six_lines(path: Path) -> Iterator[HellaSwagItem]:
    """Yield items of six lines: the text, the index of the right ending, and the endings."""
    lines = read_text_file(path).rstrip("\n").split("\n")
    for first in range(0, len(lines), 2 + ENDINGS):
        query, gold, *endings = [*lines[first : first + 2 + ENDINGS], *[""] * (2 + ENDINGS)][: 2 + ENDINGS]
        if gold not in map(str, range(ENDINGS)) or not all(text.strip() for text in (query, *endings)):
            why = f"lines {first + 1} to {first + 2 + ENDINGS} are not a text, a number from 0 to 3 and four endings"
            raise BadData(f"{one_line(path)}: {why}")
        yield HellaSwagItem(query, endings, int(gold))


def parse_item(source: BenchmarkSource, row: JsonObject, where: str) -> HellaSwagItem:
    """Build an item from a row of the original data, as lm-evaluation-harness does. Raises BadData."""
    a, b, activity = (source.get_column(row, where, name, str) for name in ("ctx_a", "ctx_b", "activity_label"))
    label = str(row.get("label", ""))
    endings = source.get_column(row, where, "endings", list)
    if len(endings) != ENDINGS or not all(isinstance(ending, str) for ending in endings):
        source.raise_bad_row(where, f"has other than {ENDINGS} endings")
    if label not in map(str, range(ENDINGS)):
        source.raise_bad_row(where, f"has label='{one_line(label)}'; allowed: 0 to {ENDINGS - 1}")
    shown = [clean_text(ending) for ending in endings]
    if not (clean_text(a) + clean_text(b)).strip():
        source.raise_bad_row(where, "has no text in ctx_a and ctx_b")
    if empty := [str(number) for number, ending in enumerate(shown) if not ending.strip()]:
        source.raise_bad_row(where, f"has no text in ending {', '.join(empty)}")
    return HellaSwagItem(clean_text(f"{activity}: {a} {b.capitalize()}"), shown, int(label))


def clean_text(text: str) -> str:
    """Remove the marks of WikiHow pages: `[title]` ends a sentence, other brackets are dropped."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
