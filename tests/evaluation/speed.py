"""HellaSwag items a second, ours and lm-evaluation-harness', on the same random model of GPT-2's size:

python -m tests.evaluation.speed hellaswag_val.txt --items 32 --device cpu --precision fp32

Measured is what scores the texts, encoding included, neither loading nor the harness' statistics; the fastest of the
given batch sizes counts. Needs the extra `lm-eval` and GPT-2's tokenizer files (TIKTOKEN_CACHE_DIR).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from nanogpt.config import ExportConfig, HardwareConfig, ModelConfig
from nanogpt.device import Compute, set_up_device
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.evaluation.hellaswag import HellaSwag
from nanogpt.evaluation.scoring import score
from nanogpt.interop.export import write_hf
from nanogpt.interop.load_model import TrainedModel
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import GPT2Tokenizer


def ours(benchmark: HellaSwag, model: GPT, compute: Compute, batch_tokens: int | None) -> tuple[float, list[float]]:
    """Return (items per second, log-likelihood of every ending)."""
    tokenizer = GPT2Tokenizer()
    started = time.perf_counter()
    scores = score(model, list(benchmark.requests(tokenizer)), compute, ProcessGroup(), batch_tokens)
    rate = len(benchmark.documents) / (time.perf_counter() - started)
    return rate, [one.log_likelihood for those in scores for one in those]


def theirs(benchmark: HellaSwag, lm: object, batch_size: int) -> tuple[float, list[float]]:
    """Return what `ours` does, of the harness' model."""
    from lm_eval.api.instance import Instance

    lm.batch_size_per_gpu = batch_size  # type: ignore[attr-defined]
    pairs = [(item.query, " " + ending) for item in benchmark.documents for ending in item.endings]
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    started = time.perf_counter()
    answers = lm.loglikelihood(instances, disable_tqdm=True)  # type: ignore[attr-defined]
    rate = len(benchmark.documents) / (time.perf_counter() - started)
    return rate, [nats for nats, _ in answers]


def main() -> None:
    """Print a line for each batch size of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="HellaSwag: .txt, .txt.bz2, .jsonl or .parquet")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 2048], help="ours: tokens per forward pass")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32], help="theirs: texts per forward pass")
    words = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from lm_eval.models.huggingface import HFLM

    compute = set_up_device(HardwareConfig(device=words.device, precision=words.precision))
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[compute.precision]
    benchmark = HellaSwag(words.file, words.items)
    model = GPT(ModelConfig(vocab_size=50_257), seed=1).eval().to(compute.device)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        write_hf(TrainedModel(model, GPT2Tokenizer(), "random", None, None), target, ExportConfig())
        lm = HFLM(pretrained=str(target), dtype=dtype, device=str(compute.device), batch_size=1)
    print(f"{compute.name}, {compute.precision}, {torch.get_num_threads()} threads, {words.items} items")
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    answers: list[list[float]] = []
    ours(HellaSwag(words.file, 2), model, compute, None)  # first calls are slow
    theirs(HellaSwag(words.file, 2), lm, 1)
    for tokens in words.tokens:
        rate, nats = ours(benchmark, model, compute, tokens)
        print(f"ours    batch_tokens={tokens:<6} {rate:8.2f} items/s", flush=True)
        rates["ours"].append(rate)
        answers.append(nats)
    for size in words.batches:
        rate, nats = theirs(benchmark, lm, size)
        print(f"lm_eval batch_size={size:<8} {rate:8.2f} items/s", flush=True)
        rates["theirs"].append(rate)
        answers.append(nats)
    largest = max(abs(a - b) for nats in answers[1:] for a, b in zip(nats, answers[0], strict=True))
    print(
        f"ratio of the fastest {max(rates['ours']) / max(rates['theirs']):.2f}; largest difference {largest:.1e} nats"
    )


if __name__ == "__main__":
    main()
