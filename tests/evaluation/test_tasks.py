"""The benchmarks' requests and metrics, against loops over single documents."""

import bz2
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.config import BenchmarkFiles, BenchmarkName, ModelConfig
from nanogpt.device import Compute
from nanogpt.errors import BadData, BadInput
from nanogpt.evaluation.hellaswag import HellaSwag
from nanogpt.evaluation.lambada import Lambada
from nanogpt.evaluation.scoring import Request, build_request
from nanogpt.evaluation.statistics import compute_mean, compute_perplexity
from nanogpt.evaluation.tasks import TaskEvaluation, fingerprint, load_benchmark
from nanogpt.evaluation.wikitext import WikiText, detokenize
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from tests.conftest import SHARED
from tests.evaluation.benchmarks import write_hellaswag, write_lambada, write_wikitext

CPU = Compute(torch.device("cpu"), "fp32", "test")
BPE = BPETokenizer.train(["Alpha beta: gamma delta. the epsilon goes beta beta stays on é"] * 4, 300)
TOKENIZERS = [ByteTokenizer(), BPE]
WRITERS: dict[BenchmarkName, Callable[[Path], Path]] = {
    "hellaswag": write_hellaswag,
    "lambada": write_lambada,
    "wikitext": write_wikitext,
}


@pytest.fixture(params=TOKENIZERS, ids=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.param


def model_for(tokenizer: Tokenizer, block_size: int = 40) -> GPT:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=block_size, vocab_size=len(tokenizer.tokens))
    model = GPT(config, seed=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


def likelihoods(model: GPT, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Token by token, the model seeing the last block_size tokens of what is before."""
    nats, greedy = 0.0, True
    whole = context + continuation
    kept = whole[-(model.config.block_size + 1) :]
    with torch.no_grad():
        logits = model(torch.tensor([kept[:-1]]))[0].double().log_softmax(1)
    for place in range(len(kept) - len(continuation), len(kept)):
        nats += float(logits[place - 1, kept[place]])
        greedy = greedy and int(logits[place - 1].argmax()) == kept[place]
    return nats, greedy


def test_hellaswag(tmp_path: Path, tokenizer: Tokenizer) -> None:
    benchmark = HellaSwag(str(write_hellaswag(tmp_path)), None)
    model = model_for(tokenizer)
    right, right_by_length = 0, 0
    for query, endings, gold in benchmark.documents:
        whole = [tokenizer.encode(f"{query} {ending}").tolist() for ending in endings]
        n = len(tokenizer.encode(query))
        nats = [likelihoods(model, ids[:n], ids[n:])[0] for ids in whole]
        right += max(range(4), key=lambda i: nats[i]) == gold
        right_by_length += max(range(4), key=lambda i: nats[i] / len(endings[i])) == gold
    found = TaskEvaluation(benchmark, tokenizer, CPU)(model)
    assert (found["acc"].value, found["acc_norm"].value) == (right / 6, right_by_length / 6)
    share = right / 6
    assert found["acc"].stderr == pytest.approx(math.sqrt(share * (1 - share) / 5))


def test_lambada(tmp_path: Path, tokenizer: Tokenizer) -> None:
    benchmark = Lambada(str(write_lambada(tmp_path)), None)
    model = model_for(tokenizer)
    pairs: list[tuple[float, bool]] = []
    for text in benchmark.documents:
        words = text.split(" ")
        before, whole = tokenizer.encode(" ".join(words[:-1])).tolist(), tokenizer.encode(text).tolist()
        pairs.append(likelihoods(model, before, whole[len(before) :]))
    found = TaskEvaluation(benchmark, tokenizer, CPU)(model)
    assert found["perplexity"].value == pytest.approx(math.exp(-sum(nats for nats, _ in pairs) / 6), rel=1e-5)
    assert found["acc"].value == sum(greedy for _, greedy in pairs) / 6


def test_wikitext(tmp_path: Path, tokenizer: Tokenizer) -> None:
    benchmark = WikiText(str(write_wikitext(tmp_path, 1)), None)
    model = model_for(tokenizer, block_size=1000)
    nats, words, n_bytes = 0.0, 0, 0
    for page in benchmark.documents:
        nats += likelihoods(model, tokenizers.start_ids(tokenizer), tokenizer.encode(detokenize(page)).tolist())[0]
        words += len(re.split(r"\s+", page))
        n_bytes += len(page.encode())
    found = TaskEvaluation(benchmark, tokenizer, CPU)(model)
    assert found["word_perplexity"].value == pytest.approx(math.exp(-nats / words), rel=1e-5)
    assert found["byte_perplexity"].value == pytest.approx(math.exp(-nats / n_bytes), rel=1e-5)
    assert found["bits_per_byte"].value == pytest.approx(math.log2(math.exp(-nats / n_bytes)), rel=1e-5)


def test_pages_begin_at_titles(tmp_path: Path) -> None:
    pages = WikiText(str(write_wikitext(tmp_path)), None).documents
    assert [page.split("\n")[0] for page in pages] == [f" = Title {i} = " for i in (0, 0, 1, 1, 2, 2)]
    expected = " = Title 0 =\n\nA page of 0 words, or so.\n== Section ==\nIt ' s a list; of (things). "
    assert detokenize(pages[0]) == expected
    assert detokenize('ten @,@ 000 at 5 \u00b0 C \'s " so " , N of [ x ] = = =') == (
        'ten,000 at 5\u00b0C\'s "so", 1 of [x] ==='
    )
    lines = tmp_path / "lines.jsonl"  # as the hub has them: an empty line lost its space
    raw = (tmp_path / "wiki.test.raw").read_text().split("\n")[:-1]
    lines.write_text("".join(json.dumps({"text": line + "\n" if line.strip() else ""}) + "\n" for line in raw))
    assert [page.rstrip() for page in WikiText(str(lines), None).documents] == [page.rstrip() for page in pages]


def test_the_real_documents() -> None:
    if not (SHARED / "data").exists():
        pytest.skip("the benchmarks' documents are not on this machine")
    counts = {"hellaswag": 10_042, "lambada": 5_153, "wikitext-2-raw": 62, "wikitext-2": 62}
    for folder, count in counts.items():
        name = folder.partition("-")[0]
        files = BenchmarkFiles(**{name: str(SHARED / "data" / folder)})
        benchmark = load_benchmark(name, files, None)  # type: ignore[arg-type]
        assert len(benchmark.documents) == count, folder
        first = load_benchmark(name, files, 5)  # type: ignore[arg-type]
        assert list(first.documents) == list(benchmark.documents)[:5]
        assert fingerprint(first) != fingerprint(benchmark)


def test_hellaswag_is_worded_as_in_the_harness(tmp_path: Path) -> None:
    row = {
        "ctx_a": " [header] How to swim [title] Get wet. [step] Go  in.",
        "ctx_b": "the water",
        "activity_label": "Sports",
        "endings": ["is [substeps] cold.", " [title] Done.", "c  c", "d"],
        "label": "2",
    }
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = HellaSwag(str(tmp_path), None).documents
    query = "Sports:  How to swim. Get wet. Go in. The water"
    assert item == (query, ["is cold.", " Done.", "c c", "d"], 2)


def test_the_context_decides_where_the_continuation_begins() -> None:
    """Spaces at its end count for the continuation; an empty one is the start of a document."""
    tokenizer = ByteTokenizer()
    assert build_request(tokenizer, "ab  ", ["c"]) == ([97, 98], [[32, 32, 99]])
    assert build_request(tokenizer, "", [" c"]) == ([10], [[32, 99]])
    assert build_request(BPE, "", ["c"]).context == [BPE.end_of_text]
    assert build_request(CharTokenizer("abc"), "  ", []).context == [0]


def test_a_vocabulary_that_lacks_characters_is_refused(tmp_path: Path) -> None:
    benchmark = HellaSwag(str(write_hellaswag(tmp_path)), None)
    with pytest.raises(BadInput, match=r"hellaswag: the character vocabulary of 24 lacks 'A' at 0.*benchmark"):
        TaskEvaluation(benchmark, CharTokenizer("abcdefghijklmnopqrstuvw "), CPU)


HELLASWAG_ROW = {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["a", "b", "c", "d"], "label": "1"}
BROKEN: list[tuple[str, str, str | bytes, str]] = [
    ("hellaswag", "a.txt", "query\n4\na\nb\nc\nd\n", "lines 1 to 6 are not a text, a number"),
    ("hellaswag", "a.txt", "query\n1\na\nb\nc\nd\nquery\n", "lines 7 to 12"),
    ("hellaswag", "a.jsonl", '{"ctx_a": "x"}\n', "line 1 of .* has no str 'ctx_b'; its columns are ctx_a"),
    ("lambada", "a.jsonl", '{"txt": "x"}\n', "line 1 of .* has no str 'text'; its columns are txt"),
    ("lambada", "a.jsonl", "{\n", "line 1 is not a JSON object"),
    *(
        ("lambada", "a.jsonl", f'{{"text": "a b"}}\n\n{{"text": "{text}"}}\n', "line 3 of .* has no last word")
        for text in ("", " ", "word", " word", "a word ", "  ")
    ),
    ("hellaswag", "a.txt", "query\n1\na\n \nc\nd\n", "lines 1 to 6"),
    ("hellaswag", "a.txt", " \n1\na\nb\nc\nd\n", "lines 1 to 6"),
    *(
        ("hellaswag", "a.jsonl", json.dumps(HELLASWAG_ROW | changes) + "\n", f"line 1 of .* {message}")
        for changes, message in (
            ({"endings": ["a", "[x]", "c", " "]}, "has no text in ending 1, 3"),
            ({"endings": []}, "has other than 4 endings"),
            ({"endings": ["a", "b", "c", None]}, "has other than 4 endings"),
            ({"ctx_a": " ", "ctx_b": "[header]"}, "has no text in ctx_a and ctx_b"),
            ({"label": ""}, "has label=''"),
        )
    ),
    ("wikitext", "a.jsonl", '{"page": "= A = \\n"}\n{"page": " \\n"}\n', "line 2 of .* has no text in its page"),
    ("lambada", "a.jsonl", "", "no documents in it"),
    ("lambada", "a.txt", "text", "unknown kind of file; allowed: .jsonl, .parquet"),
    ("wikitext", "a.raw", "\n\n", "no documents in it"),
    ("wikitext", "a.raw", b"\xff", "not UTF-8 text"),
    ("hellaswag", "a.txt.bz2", b"no bzip2", "Invalid data stream"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), BROKEN)
def test_broken_documents_are_named(
    tmp_path: Path, name: BenchmarkName, file: str, content: str | bytes, message: str
) -> None:
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadData, match=message) as error:
        load_benchmark(name, BenchmarkFiles(**{name: str(tmp_path / file)}), None)
    assert str(error.value).isprintable()


def test_missing_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"eval.lambada=nowhere: no such file"):
        load_benchmark("lambada", BenchmarkFiles(lambada="nowhere"), None)
    with pytest.raises(BadData, match=r"no file of the test split in it"):
        load_benchmark("lambada", BenchmarkFiles(lambada=str(tmp_path)), None)


def test_compressed_and_parquet_files(tmp_path: Path) -> None:
    plain = write_hellaswag(tmp_path)
    packed = tmp_path / "packed.txt.bz2"
    packed.write_bytes(bz2.compress(plain.read_bytes()))
    assert HellaSwag(str(packed), None).documents == HellaSwag(str(plain), None).documents
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    lines = write_lambada(tmp_path)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    found = Lambada(str(tmp_path / "test-00000-of-00001.parquet"), 3).documents
    assert found == Lambada(str(lines), 3).documents


def test_statistics() -> None:
    import statistics

    values = [0.5, 2.0, 2.5, 7.0]
    error = statistics.stdev(values) / 2
    assert compute_mean(values) == (3.0, pytest.approx(error))
    assert compute_perplexity(values) == (pytest.approx(math.exp(3)), pytest.approx(math.exp(3) * error))
    assert compute_mean([1.0]) == (1.0, None)
    assert math.isfinite(compute_perplexity([1e6, 2e6]).value)


def test_a_continuation_without_tokens_is_refused() -> None:
    """Whatever a benchmark and a tokenizer make of a document: no token would count as certain and right."""

    class Empty:
        name = "lambada"
        documents = ("a", "b")

        def requests(self, tokenizer: object) -> list[Request]:
            return [Request([1], [[2]]), Request([1], [[]])]

    with pytest.raises(BadData, match="document 2 has no token to predict"):
        TaskEvaluation(Empty(), ByteTokenizer(), CPU)  # type: ignore[arg-type]
