"""HellaSwag (Zellers et al. 2019): which of four endings does a text have?

Numbers as lm-evaluation-harness' `hellaswag`: `acc` takes the ending of the highest likelihood, `acc_norm` that of the
highest likelihood per character.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nanogpt.errors import BadData, one_line
from nanogpt.evaluation.documents import Record, Source, text_of
from nanogpt.evaluation.requests import request
from nanogpt.evaluation.scoring import Request, Score
from nanogpt.evaluation.statistics import Metric, mean
from nanogpt.tokenizer import Tokenizer

ENDINGS = 4


class Item(NamedTuple):
    """A text, its possible endings, and the number of the right one."""

    query: str
    endings: list[str]
    gold: int


class HellaSwag:
    """The validation split, whose answers are public."""

    name = "hellaswag"

    def __init__(self, given: str | None, limit: int | None) -> None:
        source = Source(f"eval.{self.name}", given, "Rowan/hellaswag", None, "validation", (".txt", ".txt.bz2"))
        self.documents = list(islice(items(source), limit))

    def requests(self, tokenizer: Tokenizer) -> Iterator[Request]:
        for item in self.documents:
            yield request(tokenizer, item.query, [" " + ending for ending in item.endings])

    def metrics(self, scores: Sequence[Sequence[Score]]) -> dict[str, Metric]:
        """{"acc", "acc_norm"}. Of equal likelihoods the first counts as the highest."""
        raw: list[float] = []
        normalised: list[float] = []
        for item, those in zip(self.documents, scores, strict=True):
            nats = [one.log_likelihood for one in those]
            per_character = [n / max(1, len(ending)) for n, ending in zip(nats, item.endings, strict=True)]
            raw.append(float(nats.index(max(nats)) == item.gold))
            normalised.append(float(per_character.index(max(per_character)) == item.gold))
        return {"acc": mean(raw), "acc_norm": mean(normalised)}


def items(source: Source) -> Iterator[Item]:
    """The items of text files, else of tables. Raises BadData, BadEnvironment."""
    files = source.files()
    if files and not files[0].name.endswith((".jsonl", ".parquet")):
        for path in files:
            yield from six_lines(path)
    else:
        for where, row in source.records():
            yield item_of(source, row, where)


def six_lines(path: Path) -> Iterator[Item]:
    """Items that are ready: a line each of the text, the number of the right ending, and the endings."""
    lines = text_of(path).rstrip("\n").split("\n")
    for first in range(0, len(lines), 2 + ENDINGS):
        query, gold, *endings = [*lines[first : first + 2 + ENDINGS], *[""] * (2 + ENDINGS)][: 2 + ENDINGS]
        if gold not in map(str, range(ENDINGS)) or not all(text.strip() for text in (query, *endings)):
            why = f"lines {first + 1} to {first + 2 + ENDINGS} are not a text, a number from 0 to 3 and four endings"
            raise BadData(f"{one_line(path)}: {why}")
        yield Item(query, endings, int(gold))


def item_of(source: Source, row: Record, where: str) -> Item:
    """A row of the original data as lm-evaluation-harness words it. Raises BadData where there is nothing to score."""
    a, b, activity = (source.column(row, where, name, str) for name in ("ctx_a", "ctx_b", "activity_label"))
    label = str(row.get("label", ""))
    endings = source.column(row, where, "endings", list)
    if len(endings) != ENDINGS or not all(isinstance(one, str) for one in endings):
        source.refuse_row(where, f"has other than {ENDINGS} endings")
    if label not in map(str, range(ENDINGS)):
        source.refuse_row(where, f"has label='{one_line(label)}'; allowed: 0 to {ENDINGS - 1}")
    shown = [cleaned(one) for one in endings]
    if not (cleaned(a) + cleaned(b)).strip():
        source.refuse_row(where, "has no text in ctx_a and ctx_b")
    if empty := [str(number) for number, ending in enumerate(shown) if not ending.strip()]:
        source.refuse_row(where, f"has no text in ending {', '.join(empty)}")
    return Item(cleaned(f"{activity}: {a} {b.capitalize()}"), shown, int(label))


def cleaned(text: str) -> str:
    """Without the marks of WikiHow pages: `[title]` ends a sentence, other brackets go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
