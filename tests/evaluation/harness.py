"""lm-evaluation-harness by its own command, offline, on local documents."""

import json
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

TASKS = {  # ours -> the harness' own description of the task, and the code it refers to
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag/utils.py"),
    "lambada": ("lambada/lambada_openai.yaml", None),
    "wikitext": ("wikitext/wikitext.yaml", "wikitext/preprocess_wikitext.py"),
}
ELSEWHERE = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "task:")


def harness(model: Path, documents: dict[str, Path], work: Path, words: list[str]) -> dict[str, dict[str, Any]]:
    """Return {task: {metric: value}} of a model's folder on JSON lines files; `words` extend the command."""
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
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (work / "results").rglob("*.json")
    results = json.loads(found.read_text())["results"]
    return {
        name: {key.removesuffix(",none"): value for key, value in results[f"ours_{name}"].items()} for name in documents
    }
