"""Our numbers are those of lm-evaluation-harness, run by its own command on the same documents and weights."""

import json
import re
from pathlib import Path

import pytest
import torch

from nanogpt.config import BenchmarkFiles, ExportConfig, ModelConfig
from nanogpt.device import Compute
from nanogpt.evaluation.hellaswag import HellaSwag
from nanogpt.evaluation.lambada import Lambada
from nanogpt.evaluation.tasks import TaskEvaluation, load_benchmark
from nanogpt.evaluation.wikitext import WikiText
from nanogpt.interop.export import write_hf
from nanogpt.interop.load_model import TrainedModel
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import Tokenizer, build
from tests.conftest import SHARED
from tests.evaluation.harness import harness

N = 24
DATA = SHARED / "data"


@pytest.fixture
def documents(tmp_path: Path) -> dict[str, Path]:
    """JSON lines as they are on the hub: HellaSwag's with the marks that the harness takes out."""
    if not DATA.exists():
        pytest.skip("the benchmarks' documents are not on this machine")
    rows = {
        "hellaswag": [],
        "lambada": [{"text": text} for text in Lambada(str(DATA / "lambada"), N).documents],
        "wikitext": [{"page": page} for page in WikiText(str(DATA / "wikitext-2-raw"), 6).documents],
    }
    for number, item in enumerate(HellaSwag(str(DATA / "hellaswag"), N).documents):
        activity, _, text = item.query.partition(": ")
        a, b = re.fullmatch(r"(?s)(.*?)(?: (\w+))?", text).groups("")  # type: ignore[union-attr]
        marked = f" {a} [title] More.  [step] So on " if number % 3 == 0 else a
        endings = [f"[header] {ending}  " if number % 2 else ending for ending in item.endings]
        row = {"ctx_a": marked, "ctx_b": b, "activity_label": activity, "endings": endings, "label": str(item.gold)}
        rows["hellaswag"].append(row)
    for name, those in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in those))
    return {name: tmp_path / f"{name}.jsonl" for name in rows}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("gpt2_files")
def test_numbers_are_the_harness(tmp_path: Path, documents: dict[str, Path]) -> None:
    """A context of 64 tokens cuts most passages; pages are read in windows. Weights far from zero make it confident."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[lm-eval]'")
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=50_257), seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "wpe" not in name:
                parameter.mul_(8)
    tokenizer, cpu = build("gpt2", []), Compute(torch.device("cpu"), "fp32", "test")
    add_guessed_words(documents["lambada"], model, tokenizer)
    write_hf(TrainedModel(model, tokenizer, "random", None, None), tmp_path / "model", ExportConfig())
    theirs = harness(tmp_path / "model", documents, tmp_path, ["--batch_size", "3"])
    for name in documents:
        benchmark = load_benchmark(name, BenchmarkFiles(**{name: str(documents[name])}), None)  # type: ignore[arg-type]
        ours = TaskEvaluation(benchmark, tokenizer, cpu)(model)
        for metric, found in ours.items():
            assert found.value == pytest.approx(theirs[name][metric], rel=1e-5), (name, metric)
            if metric != "perplexity" and found.stderr is not None:
                assert found.stderr == pytest.approx(theirs[name][f"{metric}_stderr"], rel=1e-5), (name, metric)
            if metric == "perplexity":  # theirs is drawn 100,000 times; 24 passages are few for the delta method
                assert found.stderr == pytest.approx(theirs[name]["perplexity_stderr"], rel=0.5)
    assert theirs["lambada"]["acc"] > 0


def add_guessed_words(path: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """More passages, whose last word is what the model thinks it is: else a random model is never right."""
    lines = path.read_text().splitlines()
    for line in lines[:8]:
        before = json.loads(line)["text"].rpartition(" ")[0]
        ids = torch.from_numpy(tokenizer.encode(before)[-64:].astype("int64"))
        word = tokenizer.tokens[int(model(ids[None])[0, -1].argmax())].decode("utf-8", "replace")
        if re.fullmatch(r" \w+", word):
            lines.append(json.dumps({"text": before + word}))
    path.write_text("\n".join(lines) + "\n")
