"""docs/extending.md is true: each addition works in a copy of the tree, and fails where one file is forgotten.

An optimizer: tests/optim/test_adding.py.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.additions import Edit, copy_code, run_python

pytestmark = pytest.mark.slow

MODEL_SWITCH = [
    Edit(
        "nanogpt/config/model.py",
        '    embedding_scale: float = fixed(1.0, "factor of the token embedding", earlier=1.0)\n',
        before="    vocab_multiple:",
    ),
    Edit("nanogpt/model/gpt.py", " * self.config.embedding_scale", after='self.transformer["wte"](ids)'),
    Edit("nanogpt/interop/architecture.py", '    "embedding_scale": 1.0,\n', after="GPT2_DEFAULTS: Values = {\n"),
    Edit("conf/model/pretrained.yaml", "  embedding_scale: null\n", before="  conv: null"),
]
DATA_SET = [
    Edit(
        "conf/data/toy.yaml",
        "# A few words.\nname: toy\ncorpus: text\nsource: words.txt\ntokenizer: byte\nval_fraction: 0.1\n",
    )
]
BENCHMARK = [
    Edit("nanogpt/config/evaluation.py", ', "toy"', after='BenchmarkName = Literal["hellaswag", "lambada", "wikitext"'),
    Edit(
        "nanogpt/config/evaluation.py",
        '    toy: str | None = free(None, "file of lines; null: none")\n',
        before="    hellaswag: str | None",
    ),
    Edit(
        "nanogpt/evaluation/toy.py",
        '''"""The last letter of each line of a file."""

from nanogpt.evaluation.scoring import build_request
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
    Edit(
        "nanogpt/evaluation/tasks.py",
        "from nanogpt.evaluation.toy import Toy\n",
        before="from nanogpt.evaluation.wikitext",
    ),
    Edit("nanogpt/evaluation/tasks.py", ', "toy": Toy', after='"wikitext": WikiText'),
    Edit("conf/eval/toy.yaml", "# The last letter of a line\ntasks: [toy]\n"),
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


def run_all(folder: Path, edits: Sequence[Edit], commands: Sequence[str]) -> tuple[int, str]:
    """Apply the edits to a copy and run the commands until one fails. Return its exit code, or 0, and its errors."""
    copy_code(folder, edits)
    (folder / "words.txt").write_text("to be or not to be\n" * 400)
    for command in commands:
        done = run_python(folder, *command.split())
        if done.returncode:
            return done.returncode, done.stderr
    return 0, ""


@pytest.mark.parametrize("case", CASES)
def test_the_documented_edits_are_enough(case: str, tmp_path: Path) -> None:
    edits, commands = CASES[case]
    assert len({edit.path for edit in edits}) <= {"data set": 1}.get(case, 4)
    assert run_all(tmp_path, edits, commands) == (0, "")


@pytest.mark.parametrize("case", CASES)
def test_a_forgotten_file_is_an_error(case: str, tmp_path: Path) -> None:
    edits, commands = CASES[case]
    for number, path in enumerate({edit.path for edit in edits}):
        code, _ = run_all(tmp_path / str(number), [edit for edit in edits if edit.path != path], commands)
        assert code != 0, f"{path} is not needed"
