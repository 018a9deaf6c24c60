"""WikiText-2 (Merity et al. 2017), page by page, with the metrics of lm-evaluation-harness' `wikitext`.

The likelihood is that of the detokenized page; it is divided by the words and bytes of the page as in the data, with
spaces around punctuation.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from nanogpt import tokenizer as tokenizers
from nanogpt.evaluation.documents import BenchmarkSource, read_text_file
from nanogpt.evaluation.scoring import Request, Score
from nanogpt.evaluation.statistics import Metric, bounded_exp
from nanogpt.tokenizer import Tokenizer


class WikiText:
    """The pages of the test split."""

    name = "wikitext"

    def __init__(self, given: str | None, limit: int | None) -> None:
        hub, endings = "EleutherAI/wikitext_document_level", (".raw", ".txt", ".tokens")
        source = BenchmarkSource(f"eval.{self.name}", given, hub, "wikitext-2-raw-v1", "test", endings)
        self.documents = list(islice(read_pages(source), limit))

    def requests(self, tokenizer: Tokenizer) -> Iterator[Request]:
        for page in self.documents:
            yield Request(tokenizers.start_ids(tokenizer), [tokenizer.encode(detokenize(page)).tolist()])

    def metrics(self, scores: Sequence[Sequence[Score]]) -> dict[str, Metric]:
        """Return {"word_perplexity", "byte_perplexity", "bits_per_byte"}."""
        nats = -math.fsum(page.log_likelihood for (page,) in scores)
        words = sum(len(re.split(r"\s+", page)) for page in self.documents)
        n_bytes = sum(len(page.encode()) for page in self.documents)
        return {
            "word_perplexity": Metric(bounded_exp(nats / words)),
            "byte_perplexity": Metric(bounded_exp(nats / n_bytes)),
            "bits_per_byte": Metric(nats / n_bytes / math.log(2)),
        }


def read_pages(source: BenchmarkSource) -> Iterator[str]:
    """Yield the pages of text files, of tables of pages, or of tables of lines (Salesforce/wikitext on the hub)."""
    files = source.local_files()
    if files and not files[0].name.endswith((".jsonl", ".parquet")):
        for path in files:
            yield from split_pages(read_text_file(path).split("\n"))
        return
    rows = list(source.read_rows())
    names = rows[0][1] if rows else {}
    if "text" in names and "page" not in names:
        lines: Iterator[str] = (source.get_column(row, where, "text", str) for where, row in rows)
        yield from split_pages((line or " ").rstrip("\n") for line in lines)
        return
    for where, row in rows:
        page: str = source.get_column(row, where, "page", str)
        if not page.strip():
            source.raise_bad_row(where, "has no text in its page")
        yield page


def split_pages(lines: Iterable[str]) -> Iterator[str]:
    """Split text before every title of the first level, ` = Title = `."""
    page: list[str] = []
    for line in lines:
        if is_title(line.strip()):
            if (text := "\n".join(page)).strip():
                yield text
            page = []
        page.append(line)
    if (text := "\n".join(page)).strip():
        yield text


def is_title(line: str) -> bool:
    """Return True for a title of the first level, unlike ` = = Section = = `."""
    return line.startswith("= ") and line.endswith(" =") and not line.startswith("= =") and not line.endswith("= =")


def detokenize(page: str) -> str:
    """Remove the spaces that tokenization added, by the rules of lm-evaluation-harness in their order.

    Their oddities are part of the benchmark. A rule that never applies is left out.
    """
    page = page.replace("s '", "s'")
    for mark in "-,.":
        page = page.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        page = page.replace(f" {mark} ", f"{mark} ")
    for left, right in ("()", "[]", "{}", '""', "''"):
        inside = rf"\s*([^{re.escape(right)}]*?)\s*"
        page = re.sub(re.escape(left) + inside + re.escape(right), rf"{left}\1{right}", page)
    for level in (4, 3, 2):
        page = page.replace(" ".join("=" * level), "=" * level)
    for before, after in (
        (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ):
        page = page.replace(before, after)
    return page
