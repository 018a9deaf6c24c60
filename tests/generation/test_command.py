"""`python sample.py` as a person uses it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.config_files import choices
from cli.sweep_request import read_configs
from nanogpt.config import SampleConfig, TaskConfig, TrainConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.generation.answers import Answer
from nanogpt.generation.command import sample
from nanogpt.interop.load_model import load_run_model
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.tokenizer import BPETokenizer, ByteTokenizer
from nanogpt.training.run import train
from tests.conftest import ROOT, Run
from tests.tiny_config import tiny_config, write_corpus

Build = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return a run that tests only read."""
    folder = tmp_path_factory.mktemp("trained")
    built = tiny_config(folder, write_corpus(folder / "corpus.txt"), **{"training.steps": 5})
    train(built)
    return built


def test_samples_come_from_the_run(trained: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = SampleConfig(runs_dir=trained.runs_dir, prompt="alpha", max_new_tokens=40, num_samples=2)
    assert sample(wanted) == 0
    first = capsys.readouterr().out
    assert first.startswith("--- sample 1 of 2\nalpha") and "--- sample 2 of 2\nalpha" in first
    sample(wanted)
    assert capsys.readouterr().out == first, "the same seed gives the same text"
    sample(wanted.model_copy(update={"seed": 1, "stream": False}))
    assert capsys.readouterr().out != first
    sample(wanted.model_copy(update={"max_new_tokens": 0, "num_samples": 1}))
    assert capsys.readouterr().out == "alpha\n"


def test_unknown_characters_and_runs(trained: TrainConfig) -> None:
    with pytest.raises(BadInput, match=r"prompt=a\?: the character vocabulary of \d+ lacks '\?' at 1"):
        sample(SampleConfig(runs_dir=trained.runs_dir, prompt="a?"))
    with pytest.raises(BadInput, match="not a run directory"):
        sample(SampleConfig(runs_dir=trained.runs_dir, run="nowhere"))


def test_a_corrupt_or_foreign_checkpoint_is_named(config: Build) -> None:
    trained = config(**{"training.steps": 5})
    train(trained)
    folder = locate_run(trained) / "checkpoints/step-00000005"
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"model.safetensors: has \d+ bytes"):
        sample(SampleConfig(runs_dir=trained.runs_dir))
    os.truncate(folder / "manifest.json", 10)
    with pytest.raises(BadCheckpoint, match=r"manifest.json"):
        sample(SampleConfig(runs_dir=trained.runs_dir))


def test_best_and_latest(config: Build) -> None:
    """They are different weights when the best is not the last."""
    built = config()
    train(built)
    run = RunDirectory(locate_run(built))
    last = load_file(run.checkpoints.path(20) / "model.safetensors")["transformer.wte.weight"]
    cpu = torch.device("cpu")
    assert torch.equal(load_run_model(run, "latest", cpu).model.token_embedding.weight, last)
    best = run.checkpoints.best_step()
    assert best is not None
    stored = load_file(run.checkpoints.path(best) / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(load_run_model(run, "best", cpu).model.token_embedding.weight, stored)


def test_a_character_of_several_tokens_is_shown_when_it_is_whole() -> None:
    """Bytes of an emoji arrive one by one: nothing is shown until the fourth, and a broken one reads as U+FFFD."""
    answer = Answer(ByteTokenizer(), TaskConfig())
    assert [answer.add(byte) for byte in "🙂".encode()] == ["", "", "", "🙂"]
    broken = Answer(ByteTokenizer(), TaskConfig())
    assert [broken.add(byte) for byte in "🙂".encode()[:2]] == ["", ""] and broken.close() == "\ufffd"


def answered(text: str, **task: object) -> str:
    """Return what is shown of a text that comes byte by byte."""
    answer = Answer(ByteTokenizer(), TaskConfig.model_validate(task))
    shown = "".join(answer.add(byte) for byte in text.encode())
    return shown + answer.close()


def test_where_an_answer_ends() -> None:
    assert answered("one\ntwo") == "one\ntwo"
    assert answered("one\ntwo", stop=("\n",)) == "one"
    assert answered("aab aabb!", stop=("aabb",)) == "aab ", "what began a stop text and wasn't one is shown"
    assert answered("aab aab", stop=("aabb",)) == "aab aab"
    assert answered("x = 1\n\ndef f", stop=("\nclass ", "\ndef ")) == "x = 1\n"
    assert answered('A "b." C! D? E. F', sentences=3) == 'A "b." C! D?'
    end = Answer(BPETokenizer.train(["ab"], 257), TaskConfig())
    assert [end.add(token) for token in (66, 0, 66)] == [end.tokenizer.tokens[66].decode(), "", ""]


def test_a_stop_text_is_never_shown_in_part() -> None:
    answer = Answer(ByteTokenizer(), TaskConfig(stop=("STOP",)))
    assert [answer.add(byte) for byte in b"aSTxSTOPb"] == ["a", "", "", "STx", "", "", "", "", ""]
    assert answer.finished and answer.text == "aSTx"


def test_prompts_from_files(trained: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file as one prompt; many prompts, one a line or as JSON; in batches, on the console or as JSON lines."""
    (tmp_path / "one.txt").write_text("alpha\nbeta")
    common = {"runs_dir": trained.runs_dir, "max_new_tokens": 12}
    sample(SampleConfig(**common, prompt=f"FILE:{tmp_path}/one.txt"))
    assert capsys.readouterr().out.startswith("alpha\nbeta")
    (tmp_path / "many.txt").write_text("alpha\n\nbeta gamma\ndelta\n")
    many = SampleConfig(**common, prompts=f"{tmp_path}/many.txt", num_samples=2)
    sample(many)
    alone = capsys.readouterr().out
    assert alone.count("--- sample") == 6 and "--- sample 3 of 6\nbeta gamma" in alone
    sample(many.model_copy(update={"batch_size": 4}))
    assert capsys.readouterr().out == alone, "a text doesn't depend on those that are drawn with it"
    (tmp_path / "many.jsonl").write_text('{"prompt": "alpha"}\n{"prompt": "delta\\n", "x": 1}\n')
    out = tmp_path / "answers.jsonl"
    sample(SampleConfig(**common, prompts=f"{tmp_path}/many.jsonl", num_samples=2, batch_size=3, out=str(out)))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, n) for p in ("alpha", "delta\n") for n in (0, 1)]
    assert rows[0]["text"] and alone.splitlines()[1] == f"alpha{rows[0]['text']}".splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "FILE:nothing.txt"}, r"prompt=nothing.txt: No such file"),
        ({"prompt": "FILE:/dev/zero"}, r"/dev/zero: not a regular file"),
        ({"prompt": "FILE:{folder}/latin1"}, r"latin1: not valid UTF-8 at byte 2"),
        ({"prompts": "{folder}/empty"}, r"empty: no prompts in the file"),
        ({"prompts": "{folder}/bad.jsonl"}, r'line 2 is not a JSON object with a text "prompt"'),
        ({"prompts": "x", "prompt": "y"}, r"prompts=x: prompt=y is given too"),
        ({"interactive": True, "prompt": "y"}, r"interactive=true"),
        ({"prompt": "alpha beta gamma delta"}, r"22 tokens, the model sees 16; truncate=true takes the last 16"),
        ({"prompt": "a\ud800"}, r"not valid UTF-8"),
        ({"prompt": "x?!#x%&Z"}, r"lacks 'x' at 0, '\?' at 1, '!' at 2, '#' at 3, '%' at 5$"),
        ({"tokenizer": "gpt2"}, r"tokenizer=gpt2: only for init_from; a run has its own"),
        ({"init_from": "gpt2", "run": "x"}, r"init_from=gpt2: not allowed with run=x"),
        ({"init_from": "gpt2-xxl"}, r"init_from=gpt2-xxl: no such weights; allowed: .*did you mean 'gpt2_xl'"),
        ({"task": TaskConfig(template="? {prompt}")}, r"lacks '\?' at 0"),
    ],
    ids=str,
)
def test_prompts_that_can_t_be(changes: dict[str, Any], message: str, trained: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"ab\xe9")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    filled = {key: v.format(folder=tmp_path) if isinstance(v, str) else v for key, v in changes.items()}
    with pytest.raises(BadInput, match=message):
        sample(SampleConfig(runs_dir=trained.runs_dir, **filled))


def test_a_long_prompt_is_cut_when_asked(trained: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"runs_dir": trained.runs_dir, "max_new_tokens": 9, "truncate": True}
    sample(SampleConfig(**common, prompt="alpha beta gamma delta"))
    long = capsys.readouterr().out
    sample(SampleConfig(**common, prompt="alpha beta gamma delta"[-16:]))
    assert long.removeprefix("alpha ") == capsys.readouterr().out


@pytest.mark.slow
def test_a_conversation(run: Run, trained: TrainConfig, tmp_path: Path) -> None:
    """Prompts on standard input; a wrong prompt is an error, and the next one is read."""
    lines = b"alpha\nwhat?\nbeta\n\xff\n"
    command = [sys.executable, str(ROOT / "sample.py"), f"runs_dir={trained.runs_dir}", "interactive=true"]
    done = subprocess.run([*command, "max_new_tokens=5"], input=lines, capture_output=True)
    assert done.returncode == 0 and len(done.stdout.decode()) > 10
    told = done.stderr.decode().splitlines()
    assert len(told) == 3 and "lacks 'w' at 0, '?' at 4" in told[1] and "not valid UTF-8" in told[2]


@pytest.mark.parametrize("task", choices("task"))
def test_tasks_put_the_prompt_and_end_the_answer(task: str) -> None:
    """Each composes, and its own words reach the model: here a byte model, which knows every character."""
    config = read_configs("sample", SampleConfig, [f"task={task}"])[0]
    assert config.task.name == task and config.task.template.count("{prompt}") == 1
    if task in ("translate", "answer_questions"):
        assert config.temperature == 0 and config.task.stop == ("\n",)
        assert answered(" Bonjour.\nNext", stop=config.task.stop) == " Bonjour."
    if task == "summarize":
        assert (config.top_k, config.max_new_tokens, config.task.sentences) == (2, 100, 3)
    if task == "write_code":
        assert answered("\n    return x\n\nprint(f(1))", stop=config.task.stop) == "\n    return x\n"


@pytest.mark.slow
def test_task_and_stop_from_the_command_line(run: Run, config: Build, tmp_path: Path) -> None:
    built = config(**{"training.steps": 2, "data.tokenizer": "byte"}, runs_dir=str(tmp_path / "work" / "runs"))
    train(built)
    done = run("sample.py", "task.template=Q: {prompt}\\nA:", "prompt=a", "stop=\\n", "max_new_tokens=3")
    assert done.returncode == 0 and done.stdout.startswith("a"), done.stderr
    done = run("sample.py", "task.template=Q", "prompt=a")
    assert (done.returncode, done.stderr) == (2, "error: task.template=Q: must contain {prompt}\n")
    done = run("sample.py", "task=translat")
    assert done.returncode == 2 and "did you mean 'translate'?" in done.stderr


def test_the_command(run: Run, config: Build, tmp_path: Path) -> None:
    built = config(**{"training.steps": 2, "eval.every": 2}, runs_dir=str(tmp_path / "work" / "runs"))
    train(built)
    done = run("sample.py", "prompt=alpha beta", "max_new_tokens=5", "temperature=0")
    assert done.returncode == 0 and done.stdout.startswith("alpha beta")
    loss = read_rows(locate_run(built) / "metrics.jsonl")[-1]["val_loss"]
    header = f"best checkpoint, step 2  val {loss:.4f} nats/token  temperature=0.0  seed=1337  max_new_tokens=5\n"
    assert done.stderr == f"runs/{locate_run(built).name}  {header}"
    done = run("sample.py", "prompt=alpha beta", "max_new_tokens=5", "top_k=2", "quiet=true")
    assert done.returncode == 0 and done.stderr == ""
    done = run("sample.py", "runs_dir=empty")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: run=null: no run under {tmp_path / 'work' / 'empty'}; train one first: python train.py\n",
    )
