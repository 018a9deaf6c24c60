"""LAMBADA (Paperno et al. 2016): predict the last word of a passage.

The metrics of lm-evaluation-harness' `lambada_openai`: `acc` is the share of passages in which every token of the last
word is the likeliest, `perplexity` is that of the word. Its standard error is by the delta method; the harness
bootstraps it.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from nanogpt.errors import one_line
from nanogpt.evaluation.documents import BenchmarkSource, JsonObject
from nanogpt.evaluation.scoring import Request, Score, build_request
from nanogpt.evaluation.statistics import Metric, compute_mean, compute_perplexity
from nanogpt.tokenizer import Tokenizer


class Lambada:
    """OpenAI's variant of the test split, with untokenized text (Radford et al. 2019)."""

    name = "lambada"

    def __init__(self, given: str | None, limit: int | None) -> None:
        source = BenchmarkSource(f"eval.{self.name}", given, "EleutherAI/lambada_openai", "default", "test", ())
        self.documents = [parse_passage(source, where, row) for where, row in islice(source.read_rows(), limit)]

    def requests(self, tokenizer: Tokenizer) -> Iterator[Request]:
        for text in self.documents:
            before, _, word = text.rpartition(" ")
            yield build_request(tokenizer, before, [" " + word])

    def metrics(self, scores: Sequence[Sequence[Score]]) -> dict[str, Metric]:
        """Return {"perplexity", "acc"}."""
        words = [word for (word,) in scores]
        return {
            "perplexity": compute_perplexity([-word.log_likelihood for word in words]),
            "acc": compute_mean([float(word.greedy) for word in words]),
        }


def parse_passage(source: BenchmarkSource, where: str, row: JsonObject) -> str:
    """Return the text of a row. Raises BadData if it has no last word that follows others."""
    text: str = source.get_column(row, where, "text", str)
    before, _, word = text.rpartition(" ")
    if not before.strip() or not word.strip():
        source.raise_bad_row(where, f"has no last word after a space in its text: {one_line(repr(text), 80)}")
    return text
