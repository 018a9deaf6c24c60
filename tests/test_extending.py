"""docs/extending.md is true: each addition works in a copy of the tree, and fails where one place is forgotten.

An optimizer: tests/optim/test_adding.py.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("nanogpt", "cli", "conf", "launch", "experiments", "tests", "train.py", "evaluate.py", "pyproject.toml")
pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """A place that an addition touches: a new file, or text that is put before or after an anchor in a file."""

    path: str
    text: str
    after: str = ""
    before: str = ""


MODEL_SWITCH = [
    Place(
        "nanogpt/config/model.py",
        '    embedding_scale: float = fixed(1.0, "factor of the token embedding", earlier=1.0)\n',
        before="    vocab_multiple:",
    ),
    Place("nanogpt/model/gpt.py", " * self.config.embedding_scale", after='self.transformer["wte"](ids)'),
    Place("nanogpt/interop/architecture.py", '    "embedding_scale": 1.0,\n', after="GPT2_DEFAULTS: Values = {\n"),
    Place("conf/model/pretrained.yaml", "  embedding_scale: null\n", before="  conv: null"),
]
DATA_SET = [
    Place(
        "conf/data/toy.yaml",
        "# A few words.\nname: toy\ncorpus: text\nsource: words.txt\ntokenizer: byte\nval_fraction: 0.1\n",
    )
]
BENCHMARK = [
    Place(
        "nanogpt/config/evaluation.py", ', "toy"', after='BenchmarkName = Literal["hellaswag", "lambada", "wikitext"'
    ),
    Place(
        "nanogpt/config/evaluation.py",
        '    toy: str | None = free(None, "file of lines; null: none")\n',
        before="    hellaswag: str | None",
    ),
    Place(
        "nanogpt/evaluation/toy.py",
        '''"""The last letter of each line of a file."""

from nanogpt.evaluation.requests import build_request
from nanogpt.evaluation.statistics import compute_mean
from pathlib import Path


class Toy:
    name = "toy"

    def __init__(self, path, limit):
        self.documents = Path(path).read_text().splitlines()[:limit]

    def requests(self, tokenizer):
        return (build_request(tokenizer, line[:-1], [line[-1]]) for line in self.documents)

    def metrics(self, scores):
        return {"acc": compute_mean([float(letter.greedy) for (letter,) in scores])}
''',
    ),
    Place(
        "nanogpt/evaluation/tasks.py",
        "from nanogpt.evaluation.toy import Toy\n",
        before="from nanogpt.evaluation.wikitext",
    ),
    Place("nanogpt/evaluation/tasks.py", ', "toy": Toy', after='"wikitext": WikiText'),
    Place("conf/eval/toy.yaml", "# The last letter of a line\ntasks: [toy]\n"),
]
TINY = "model=tiny model.n_layer=1 training.steps=2 schedule.warmup_steps=0 training.batch_tokens=768 eval.tokens=256"
TRAIN = f"train.py data=text data.source=words.txt data.tokenizer=byte {TINY} hardware=cpu"
CASES = {
    "model switch": (
        MODEL_SWITCH,
        [
            f"{TRAIN} model.embedding_scale=2.0",
            "-m pytest -q -n 0 -p no:cacheprovider tests/cli/test_compose.py -k switch_of_the_network",
            "-m pytest -q -n 0 -p no:cacheprovider tests/test_config.py -k read_by_code",
        ],
    ),
    "data set": (DATA_SET, [f"train.py data=toy {TINY} hardware=cpu"]),
    "benchmark": (BENCHMARK, [TRAIN, "evaluate.py eval=toy eval.toy=words.txt device=cpu"]),
}


def add(folder: Path, places: list[Place]) -> Path:
    """Copy the code and make the additions."""
    for name in CODE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    (folder / "words.txt").write_text("to be or not to be\n" * 400)
    for place in places:
        path = folder / place.path
        if anchor := place.after or place.before:
            text = path.read_text()
            assert text.count(anchor) == 1, (place.path, anchor)
            new = anchor + place.text if place.after else place.text + anchor
            path.write_text(text.replace(anchor, new))
        else:
            path.write_text(place.text)
    return folder


def run(folder: Path, commands: list[str]) -> tuple[int, str]:
    """Run the commands until one fails. Returns its exit code, or 0, and what it said."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    for command in commands:
        words = [sys.executable, *command.split()]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return done.returncode, done.stderr
    return 0, ""


@pytest.mark.parametrize("case", CASES)
def test_the_places_that_the_page_names_are_enough(case: str, tmp_path: Path) -> None:
    places, commands = CASES[case]
    assert len({place.path for place in places}) <= {"data set": 1}.get(case, 4)
    assert run(add(tmp_path, places), commands) == (0, "")


@pytest.mark.parametrize("case", CASES)
def test_a_place_that_is_forgotten_is_an_error(case: str, tmp_path: Path) -> None:
    places, commands = CASES[case]
    for number, path in enumerate({place.path for place in places}):
        left = [place for place in places if place.path != path]
        code, _ = run(add(tmp_path / str(number), left), commands)
        assert code != 0, f"{path} is not needed"
