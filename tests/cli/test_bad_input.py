"""Wrong input: one line, the right exit code, the nearest name, and nothing created."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.entry import dispatch
from cli.sweep_request import read_configs
from nanogpt.config import TrainConfig
from nanogpt.errors import Diverged, LabError
from nanogpt.schema import iter_fields
from tests.cli_helpers import CONFIGS, error_message
from tests.conftest import Run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("temperature=-1", "out of range"),
        ("temperature=nan", "finite number"),
        ("top_k=0", "top_k=0: out of range"),
        ("top_p=0", "top_p=0: out of range"),
        ("top_p=1.5", "out of range"),
        ("max_new_tokens=-1", "out of range"),
        ("num_samples=0", "out of range"),
        ("seed=-1", "out of range"),
        ("seed=99999999999999999999", "seed=99999999999999999999"),
        ("start=x", "did you mean 'prompt'?"),
        ("checkpoint=newest", "allowed: one of best, latest"),
    ],
)
def test_sampling(words: str, expected: str) -> None:
    assert expected in error_message("sample", [words])


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("sizing", "sizing.gpu=h101", "one of gb300, gb200, b300, b200, gh200, h200"),
        ("sizing", "sizing.gpu=h101", "did you mean 'h100'?"),
        ("sizing", "sizing.mfu=40", "sizing.mfu=40: out of range; allowed: number in (0, 1]"),
        ("sizing", "sizing.price=2", "sizing.price=2.0: needs a GPU model, e.g. sizing.gpu=h100"),
        ("sizing", "model.n_head=5", "must divide model.n_embd=768"),
        ("bench", "hardware.devices=2", "hardware.devices=2: bench measures one device; give 1, and bench.ranks=[2]"),
        ("bench", "hardware=8xh100", "hardware.devices=8: bench measures one device"),
        ("bench", "hardware.strategy=fsdp", "hardware.strategy=fsdp: bench measures one device; give ddp"),
        ("scaling", "budget=0", "budget=0: out of range"),
        ("scaling", "budget=1e19 n_params=1e6", "n_params=1000000.0: can't be combined with budget or runs"),
        ("scaling", "n_param=1e6", "did you mean 'n_params'?"),
        ("scaling", "bootstrap=1", "out of range; allowed: integer in [20, 100000]"),
        ("scaling", "law.alpha=0", "out of range"),
        ("scaling", "model=gpt2", "model: no such key or group"),
        (
            "report",
            "x=token",
            "x=token: not a choice; allowed: one of steps, tokens, flops, time; did you mean 'tokens'?",
        ),
        ("report", "metric=worst", "allowed: one of val_loss, val_bpb"),
        ("report", "otu=x", "did you mean 'out'?"),
        ("report", "format=[md,pfd]", "format=pfd: not a choice; allowed: a list of md, html, pdf"),
        ("report", "format=[md,pfd]", "did you mean 'pdf'?"),
        ("report", "format=latex", "not a choice; allowed: a list of md, html, pdf, svg, png, csv, tex, json"),
        ("report", "format=[]", "at least one value is needed"),
        ("report", "plots=heat", "did you mean 'heatmap'?"),
        ("compare", "out=''", "out=: "),
        ("list", "state=fail", "did you mean 'failed'?"),
        ("watch", "poll_s=0", "poll_s=0: out of range; allowed: number in [0.2, 3600]"),
        ("gc", "what=[trash]", "allowed: a list of leftovers, checkpoints, code, damaged, attempts, empty"),
        ("gc", "delete=1", "delete=1: a boolean is needed"),
    ],
)
def test_experiments(command: str, words: str, expected: str) -> None:
    assert expected in error_message(command, words.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eval=hellaswg", "no such choice; allowed: one of all, hellaswag, lambada, loss, wikitext; did you mean"),
        ("eval=null", "eval=: needs a value"),
        ("eval.limit=0", "eval.limit=0: out of range"),
        ("eval.tasks=[los]", "eval.tasks=los: not a choice; allowed: a list of loss, hellaswag, lambada, wikitext"),
        ("eval.hellswag=x", "did you mean 'eval.hellaswag'?"),
        ("data.source=x", "data.source=x: data=pystdlib is this Python's own library; files of yours: data=text"),
        ("data=nowhere", "no such choice"),
        ("init_from=gpt2", "data=null: eval=loss with init_from needs a data set"),
        ("precision=fp8", "allowed: one of auto, fp32, bf16, fp16"),
        ("hardware.device=cpu", "did you mean 'device'?"),
    ],
)
def test_evaluating(words: str, expected: str) -> None:
    assert expected in error_message("evaluate", [words])


def test_a_bad_point_stops_the_whole_sweep() -> None:
    assert "optimizer.lr=abc: a number is needed" in error_message("train", ["-m", "optimizer.lr=1e-3,abc"])


def test_points_of_a_sweep_fail_alone_and_a_stop_ends_it() -> None:
    seen: list[float] = []

    def main(config: TrainConfig) -> int:
        seen.append(config.optimizer.lr)
        if config.optimizer.lr == 0.2:
            raise Diverged("too high")
        return 85 if config.optimizer.lr == 0.4 else 0

    assert dispatch("train", TrainConfig, main, ["-m", "optimizer.lr=0.1,0.2,0.3"]) == 6
    assert seen == [0.1, 0.2, 0.3]
    assert dispatch("train", TrainConfig, main, ["-m", "optimizer.lr=0.4,0.5"]) == 85
    assert seen[3:] == [0.4]


def wrong_values(annotation: str) -> list[str]:
    """Values that no field of this kind takes."""
    wrong = ["[[1]]", "{a:{b:1}}", "x" * 1000]
    if "str" not in annotation:
        wrong += ["abc", "''"]
    if "bool" not in annotation and "Literal" not in annotation:
        wrong += ["true"]
    if "int" in annotation or "float" in annotation:
        wrong += ["-1e30", "nan", "-inf"]
    if "int" in annotation:
        wrong += ["1.5", "1" + "0" * 30]
    if "None" not in annotation and "Optional" not in annotation:
        wrong.append("null")
    return wrong


@pytest.mark.parametrize("command", ["train", "prepare", "sample", "evaluate", "scaling"])
def test_every_leaf_refuses_wrong_values(command: str) -> None:
    seen: set[str] = set()
    for key, field in iter_fields(CONFIGS[command]):
        if key in ("prompt", "stop", "data.separator"):  # free text
            continue
        kind = str(field.annotation)
        values = wrong_values(kind)
        if kind in seen:
            values = values[:2]  # the rest of this type's values was tried on another key
        seen.add(kind)
        for value in values:
            if len(value) == 1000 and key in PATHS:
                continue  # a long path is text like any other until it is opened
            message = error_message(command, [f"{key}={value}"])
            assert len(message) < 400 and message.isprintable(), message
            group = key.split(".")[0]
            assert re.search(rf"\b{group}", message), message


PATHS = {
    "runs",
    "runs_dir",
    "replay",
    "resume.run",
    "run",
    "tokenizer",
    "prompts",
    "out",
    "data.source",
    "data.dir",
    "data.hub",
    "data.hub_config",
    "data.text_column",
}


WORDS = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "+", "++", "~", "--", "-", " "]),
        st.sampled_from([key for key, _ in iter_fields(TrainConfig)] + ["model", "data", "hydra.verbose", "x.y", ""]),
        st.one_of(st.text(max_size=12), st.sampled_from(["{", "[", "${", "'", '"', "1,2", "choice(1)", "range(1,2)"])),
    ),
)


@given(st.lists(WORDS, min_size=1, max_size=3), st.sampled_from([[], ["-m"]]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_overrides_never_crash(words: list[str], flags: list[str]) -> None:
    """Whatever is typed is either a valid config or one line; never another exception."""
    if any(word.lstrip().startswith(("-h", "--help", "-c", "-i", "-sc", "--")) for word in words):
        words = ["x" + word for word in words]
    try:
        read_configs("train", TrainConfig, words, multirun=bool(flags))
    except LabError as error:
        assert error.exit_code == 2 and str(error).isprintable()


def test_the_process_says_one_line_and_creates_nothing(run: Run, tmp_path: Path) -> None:
    done = run("train.py", "model.n_head=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: model.n_head=5: must divide model.n_embd=128; nearest 4, 8\n"
    assert not list((tmp_path / "work").iterdir())


def test_no_gpu_is_an_environment_error(run: Run, tmp_path: Path) -> None:
    done = run("train.py", "hardware=gpu", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 5 and done.stderr.count("\n") == 1
    assert "hardware.device=cuda: no CUDA device here; use hardware.device=cpu" in done.stderr
    assert not list((tmp_path / "work").iterdir())


def test_unprepared_data_names_the_command(run: Run, tmp_path: Path) -> None:
    done = run("train.py", "model=gpt2", "data=openwebtext")
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert "not prepared; run: python prepare.py data=openwebtext" in done.stderr
    assert not list((tmp_path / "work").iterdir())


def test_a_model_larger_than_the_machine_is_refused(run: Run) -> None:
    done = run("train.py", "model.n_layer=1000", "model.n_embd=65536", "model.n_head=64")
    assert done.returncode == 2 and "parameters need" in done.stderr


def test_nan_is_not_a_number_anywhere() -> None:
    assert math.isnan(float("nan"))
    for key, field in iter_fields(TrainConfig):
        if "float" in str(field.annotation):
            error_message("train", [f"{key}=nan"])
