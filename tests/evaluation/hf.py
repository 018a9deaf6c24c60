"""A GPT as other programs read it, GPT-2's config.json, weights and tokenizer, and what the harness says of it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

from nanogpt.model.gpt import GPT

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
FILES = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
TASKS = {  # ours -> the harness' own description of the task, and the code it refers to
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag/utils.py"),
    "lambada": ("lambada/lambada_openai.yaml", None),
    "wikitext": ("wikitext/wikitext.yaml", "wikitext/preprocess_wikitext.py"),
}
ELSEWHERE = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "task:")


def export(model: GPT, folder: Path) -> None:
    """Write the model (in GPT-2's form) and GPT-2's tokenizer."""
    c = model.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head
        )
    )
    weights = {
        name: value.T if name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and value.dim() == 2 else value
        for name, value in model.state_dict().items()
    }
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and not [name for name in missing if not name.endswith((".attn.bias", ".masked_bias"))]
    theirs.save_pretrained(folder)
    cache = Path(os.environ["TIKTOKEN_CACHE_DIR"])
    files = {ours: cache / hashlib.sha1(f"{OPENAI}{name}".encode()).hexdigest() for ours, name in FILES.items()}
    for name, path in files.items():
        shutil.copy(path, folder / name)
    GPT2TokenizerFast.from_pretrained(folder).save_pretrained(folder)


def harness(model: Path, documents: dict[str, Path], work: Path, words: list[str]) -> dict[str, dict[str, Any]]:
    """lm-evaluation-harness' results on JSON lines files, {task: {metric: value}}, by its command line and offline."""
    spec = util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parent / "tasks"
    for name, path in documents.items():
        about, code = TASKS[name]
        kept = [line for line in (installed / about).read_text().splitlines() if not line.startswith(ELSEWHERE)]
        files = json.dumps({"data_files": {"test": str(path)}})
        head = [f"task: ours_{name}", "dataset_path: json", f"dataset_kwargs: {files}", "test_split: test"]
        (work / f"{name}.yaml").write_text("\n".join([*head, *kept]) + "\n")
        if code:
            shutil.copy(installed / code, work)
    arguments = f"pretrained={model},dtype=float32"
    tasks = ",".join(f"ours_{name}" for name in documents)
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--device", "cpu"]
    command += ["--tasks", tasks, "--include_path", str(work), "--output_path", str(work / "results"), *words]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (work / "results").rglob("*.json")
    results = json.loads(found.read_text())["results"]
    return {
        name: {key.removesuffix(",none"): value for key, value in results[f"ours_{name}"].items()} for name in documents
    }
