"""Wrong input: one line, the right exit code, the nearest name, and nothing created."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.door import dispatch
from conf.reading import points
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput, Diverged, LabError
from nanogpt.schema import leaves
from tests.conftest import Run
from tests.doors import DOORS

TABLE = [
    # override syntax
    ("modle=gpt2", "modle: no such key or group; did you mean 'model'?"),
    ("optimizer.learning_rate=1e-3", "optimizer.learning_rate: no such key or group; did you mean 'optimizer.lr'?"),
    ("lr=1e-3", "lr: no such key or group; did you mean 'optimizer.lr'?"),
    ("learning_rate=1e-3", "did you mean 'optimizer.lr'?"),
    ("max_iters=5", "did you mean 'training.steps'?"),
    ("+optimizer.foo=1", "keys can't be added"),
    ("++optimizer.lr=1", "keys can't be added"),
    ("~model", "keys can't be deleted"),
    ("~model.n_layer", "keys can't be deleted"),
    ("model", "model: not an override; write key=value"),
    ("=3", "=3: the key before '=' is missing"),
    ('name="unterminated', "check the quotes and brackets"),
    ("name=ünï", "the character 'ü' needs quotes"),
    ("name='a b'", "name=a b: not a name; allowed: letters, digits"),
    ("--lr=3", "--lr=3: no such option; settings are written without dashes: lr=3"),
    ("--learning_rate", "no such option"),
    ("model=gpt2 model=tiny", "model is given twice"),
    ("optimizer.lr=1 optimizer.lr=2", "optimizer.lr is given twice"),
    ("optimizer.lr=1e-3,1e-4", "several values are a sweep and need -m"),
    ("name=${foo}", "name: refers to the unknown key 'foo'"),
    ("optimizer.lr=${optimizer.learning_rate}", "did you mean 'optimizer.lr'?"),
    ("name=${oc.env:SURELY_NOT_SET}", "name: the environment variable SURELY_NOT_SET is not set"),
    ("name=${oc.env:WANDB_API_KEY}", "WANDB_API_KEY looks like a secret"),
    ("data.source=${oc.env:HF_TOKEN,x}", "HF_TOKEN looks like a secret"),
    ("hydra.run.dir=/proc/x", "Hydra's own settings can't be changed"),
    (
        "hydra/launcher=submitit_slrum",
        "allowed: one of basic, submitit_local, submitit_slurm; did you mean 'submitit_slurm'?",
    ),
    ("model={n_layer:3}", "no such choice"),
    ("model=glob(*)", "several values are a sweep and need -m"),
    ("model=range(1,100000000)", "several values are a sweep and need -m"),
    ("-m optimizer.lr=range(1,1000000000)", "points; allowed: at most 100,000"),
    ("-m optimizer.lr=interval(0,1)", "a sweep needs a list of values"),
    ("optimizer.lr=" + "[" * 600 + "]" * 600, "optimizer.lr="),
    ("--cfg foo", "--cfg foo: allowed: one of job, hydra, all"),
    ("--cfg", "--cfg : allowed: one of job"),
    ("--resolve", "no such option"),
    ('data.hub="${oc.env:${data.text_column}}"', "must be written out"),
    ("optimizer={lr:3}", "no such choice"),
    ("training={steps:3}", "a group of keys; set one of training.batch_tokens"),
    ("model.n_layer.x=3", "did you mean 'model.n_layer'?"),
    ("model@x=gpt2", "no such key or group"),
    ("model._target_=os.system", "no such key"),
    # group choice
    ("model=gpt3", "model=gpt3: no such choice; allowed: one of baby, baby_modern, gpt2"),
    ("model=GPT2", "did you mean 'gpt2'?"),
    ("model=null", "needs a value"),
    ("model=", "needs a value"),
    ("optimizer=sgd", "no such choice; allowed: one of adamw, muon, normuon"),
    ("model=../../etc/passwd", "no such choice"),
    ("experiment=quikstart", "did you mean 'quickstart'?"),
    (
        "hardware=8h100",
        "no such choice; allowed: one of 2x8xh100, 8xa100, 8xh100, 8xh200, a100, auto, cpu, gpu, h100, h200; "
        "did you mean '8xh100'?",
    ),
    # model
    ("model.n_head=5", "model.n_head=5: must divide model.n_embd=128; nearest 4, 8"),
    ("model.n_head=200", "model.n_head=200: must divide model.n_embd=128; nearest 128"),
    ("model.n_head=0", "model.n_head=0: out of range; allowed: integer in [1, 1024]"),
    ("model.n_head=-1", "out of range"),
    ("model.n_layer=0", "out of range"),
    ("model.n_embd=0", "out of range"),
    ("model.n_layer=1000000", "out of range"),
    ("model.n_head=12.0", "model.n_head=12.0: an integer is needed"),
    ("model.dropout=1.5", "model.dropout=1.5: out of range; allowed: number in [0, 1)"),
    ("model.dropout=-0.1", "out of range"),
    ("model.dropout=1.0", "out of range"),
    ("model.dropout=nan", "model.dropout=nan: a finite number is needed"),
    ("model.block_size=0", "out of range"),
    ("model.activation=GELU", "not a choice; allowed: one of gelu, gelu_tanh, relu2, swiglu; did you mean 'gelu'?"),
    ("model.bias=maybe", "model.bias=maybe: a boolean is needed; allowed: true or false"),
    ("init_from=gpt2-xxl", "init_from=gpt2-xxl: no such weights; allowed: scratch, gpt2, gpt2_medium"),
    # optimizer and schedule
    ("optimizer.lr=abc", "optimizer.lr=abc: a number is needed; allowed: number in (0, 10]"),
    ("optimizer.lr=-1", "out of range"),
    ("optimizer.lr=0", "out of range"),
    ("optimizer.lr=nan", "a finite number is needed"),
    ("optimizer.lr=inf", "finite number"),
    ("optimizer.lr=", "a number is needed"),
    ("optimizer.lr=null", "optimizer.lr=null: a number is needed"),
    ("optimizer.betas=[0.9,1.0]", "optimizer.betas=1.0: out of range"),
    ("optimizer.betas=[0.9]", "two values"),
    ("optimizer.betas=0.9", "a list is needed"),
    ("optimizer.weight_decay=-0.1", "out of range"),
    ("optimizer.grad_clip=-1", "out of range"),
    ("optimizer.momentum=0.9", "optimizer.momentum=0.9: is muon's; give optimizer=muon"),
    ("optimizer.cautious_decay=true", "optimizer.cautious_decay=True: is muon's; give optimizer=muon"),
    ("optimizer.row_beta=0.9", "optimizer.row_beta=0.9: is normuon's; give optimizer=normuon"),
    ("optimizer=muon optimizer.row_beta=0.9", "optimizer.row_beta=0.9: is normuon's; give optimizer=normuon"),
    ("optimizer=moun", "did you mean 'muon'?"),
    ("optimizer=muon optimizer.momentum=1.0", "optimizer.momentum=1.0: out of range; allowed: number in [0, 1)"),
    ("optimizer=muon optimizer.orthogonal_steps=0", "out of range; allowed: integer in [1, 10]"),
    ("optimizer=muon optimizer.orthogonal_steps=11", "out of range; allowed: integer in [1, 10]"),
    ("optimizer=muon optimizer.momentum_warmup_steps=-1", "out of range"),
    ("optimizer.embedding_lr=0", "optimizer.embedding_lr=0: out of range; allowed: number in (0, 10] or null"),
    ("optimizer.head_lr=fast", "optimizer.head_lr=fast: a number is needed"),
    ("schedule.min_lr_ratio=1.1", "out of range"),
    ("schedule.warmup_steps=1001", "schedule.warmup_steps=1001: is above the run's length in steps=1000"),
    ("schedule.decay_steps=0", "out of range"),
    ("schedule.decay_steps=50", "schedule.warmup_steps=100: is above schedule.decay_steps=50"),
    ("schedule=cosin", "did you mean 'cosine'?"),
    ("training.steps=-1", "out of range"),
    ("training.steps=5 training.tokens=1000", "exactly one of"),
    ("training.steps=5 training.flops=1e12", "training.tokens_per_param, training.flops; set the others to null"),
    ("training.flops=0", "training.flops=0: out of range; allowed: number in (0, 1e+30] or null"),
    ("training.flop=1e12", "did you mean 'training.flops'?"),
    ("training.seed=-1", "out of range"),
    ("training.eval_tasks=hellaswag", "a list is needed; allowed: a list of hellaswag, lambada, wikitext"),
    ("training.eval_tasks=[helaswag]", "training.eval_tasks=helaswag: not a choice; allowed: a list of hellaswag"),
    ("eval=hellaswag", "eval=hellaswag: a group of keys; set one of eval.hellaswag"),
    ("plan=maybe", "plan=maybe: a boolean is needed"),
    # batch and hardware
    ("training.batch_tokens=0", "out of range"),
    ("training.batch_tokens=-3", "out of range"),
    ("training.batch_tokens=1.5", "an integer is needed"),
    ("training.batch_tokens=100", "must be a multiple of model.block_size=64; nearest 64, 128"),
    ("hardware.micro_batch_size=7", "must divide the 24 sequences of training.batch_tokens=1536; nearest 6, 8"),
    ("training.batch_tokens=640000000000 hardware.micro_batch_size=7", "must divide"),
    ("hardware.micro_batch_size=48", "must divide the 24 sequences"),
    ("hardware.micro_batch_size=0", "out of range; allowed: integer in [1, 9007199254740992] or auto or null"),
    ("hardware.micro_batch_size=all", "hardware.micro_batch_size=all: an integer is needed; allowed: integer in [1,"),
    ("hardware.micro_batch_size=1.5", "hardware.micro_batch_size=1.5: an integer is needed"),
    ("hardware.device=tpu", "allowed: auto, cpu, mps, cuda or cuda:N"),
    ("hardware.precision=float64", "allowed: one of auto, fp32, bf16, fp16"),
    ("hardware.compile=maybe", "a boolean is needed"),
    ("hardware.threads=0", "out of range"),
    ("hardware.devices=0", "out of range; allowed: integer in [1, 64] or null"),
    ("hardware.devices=5", "must divide the 24 sequences of training.batch_tokens=1536; nearest 4, 6"),
    ("hardware.devices=2 hardware.micro_batch_size=24", "24 sequences of training.batch_tokens=1536, 12 on each of 2"),
    ("hardware.timeout=0", "out of range"),
    ("tracking=wandb tracking.mode=onlin", "one of online, offline, disabled or null; did you mean 'online'?"),
    ("tracking=wand", "no such choice; allowed: one of local, tensorboard, trackio, wandb; did you mean 'wandb'?"),
    ("tracking.mode=offline", "tracking.mode=offline: is wandb's; give tracking=wandb too"),
    ("tracking.mirrors=[tensorbord]", "a list of wandb, tensorboard, trackio; did you mean 'tensorboard'?"),
    ("tracking=wandb tracking.project=a/b", "tracking.project=a/b: not a name"),
    ("tracking=wandb tracking.timeout=0", "out of range; allowed: number in [1, 86400]"),
    ("checkpoint.keep=1", "out of range; allowed: integer in [2, 1000]"),
    ("checkpoint.keep_every=0", "out of range"),
    ("training.on_nonfinite=ignore", "allowed: one of halt, skip"),
    ("resume.allow_change=[optimizer.l]", "is not a guarded key; did you mean 'optimizer.lr'?"),
    ("resume.allow_change=[model.n_layer]", "model.n_layer is not a guarded key"),
    ("resume.allow_change=lr", "a list is needed; allowed: a list of keys"),
    ("resume.run=x fresh=true", "resume.run=x: fresh=true starts another run"),
    # names and data
    ("name=../../etc/x", "not a name"),
    ("name=/abs", "not a name"),
    ("name=-rf", "not a name"),
    ("name=.", "not a name"),
    ("name=x.", "not a name"),
    ("name=12", "quote it: name=\"'12'\""),
    ("data=text", "data.source=null: data=text needs your files"),
    ("data.tokenizer=word", "allowed: one of char, byte, bpe, gpt2"),
    ("data.tokenizer=bpe", "needs a size, e.g. data.vocab_size=1024"),
    ("data.val_fraction=0", "out of range"),
    ("data.val_fraction=1", "out of range"),
]


def refused(door: str, words: list[str]) -> str:
    """The message of a refusal; anything else than a LabError with exit code 2 fails."""
    with pytest.raises(BadInput) as error:
        dispatch(door, DOORS[door], lambda _: pytest.fail("was run"), words)
    return str(error.value)


@pytest.mark.parametrize(("words", "expected"), TABLE, ids=[words for words, _ in TABLE])
def test_table(words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("train", [words] if "'" in words else words.split())
    assert expected in message
    assert message.isprintable(), "one line, no control characters"
    assert not list(tmp_path.iterdir())


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
    assert expected in refused("sample", [words])


@pytest.mark.parametrize(
    ("door", "words", "expected"),
    [
        ("sizing", "sizing.gpu=h101", "one of b200, gh200, h200, h100, h100_nvl"),
        ("sizing", "sizing.gpu=h101", "did you mean 'h100'?"),
        ("sizing", "sizing.mfu=40", "sizing.mfu=40: out of range; allowed: number in (0, 1]"),
        ("sizing", "sizing.price=2", "sizing.price=2.0: is of one kind of GPU; name it, e.g. sizing.gpu=h100"),
        ("sizing", "model.n_head=5", "must divide model.n_embd=768"),
        ("scaling", "budget=0", "budget=0: out of range"),
        ("scaling", "budget=1e19 n_params=1e6", "n_params=1000000.0: is a question of its own"),
        ("scaling", "n_param=1e6", "did you mean 'n_params'?"),
        ("scaling", "bootstrap=1", "out of range; allowed: integer in [20, 100000]"),
        ("scaling", "law.alpha=0", "out of range"),
        ("scaling", "model=gpt2", "model: no such key or group"),
        (
            "report",
            "x=token",
            "x=token: not a choice; allowed: one of steps, tokens, flops, time; did you mean 'tokens'?",
        ),
        ("report", "metric=worst", "allowed: one of final, best"),
        ("report", "otu=x", "did you mean 'out'?"),
        ("compare", "out=''", "out=: "),
        ("list", "state=fail", "did you mean 'failed'?"),
        ("watch", "poll_s=0", "poll_s=0: out of range; allowed: number in [0.2, 3600]"),
        ("gc", "what=[trash]", "allowed: a list of leftovers, checkpoints, code, damaged, attempts, empty"),
        ("gc", "delete=1", "delete=1: a boolean is needed"),
    ],
)
def test_experiments(door: str, words: str, expected: str) -> None:
    assert expected in refused(door, words.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("eval=hellaswg", "no such choice; allowed: one of all, hellaswag, lambada, loss, wikitext; did you mean"),
        ("eval=null", "eval=: needs a value"),
        ("eval.limit=0", "eval.limit=0: out of range"),
        ("eval.tasks=[los]", "eval.tasks=los: not a choice; allowed: a list of loss, hellaswag, lambada, wikitext"),
        ("eval.hellswag=x", "did you mean 'eval.hellaswag'?"),
        ("data.source=x", "data.source=x: of which data set? choose one too, e.g. data=text"),
        ("data=nowhere", "no such choice"),
        ("init_from=gpt2", "data=null: eval=loss with init_from needs a data set"),
        ("precision=fp8", "allowed: one of auto, fp32, bf16, fp16"),
        ("hardware.device=cpu", "did you mean 'device'?"),
    ],
)
def test_evaluating(words: str, expected: str) -> None:
    assert expected in refused("evaluate", [words])


def test_a_bad_point_stops_the_whole_sweep() -> None:
    assert "optimizer.lr=abc: a number is needed" in refused("train", ["-m", "optimizer.lr=1e-3,abc"])


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


@pytest.mark.parametrize("door", ["train", "prepare", "sample", "evaluate", "scaling"])
def test_every_leaf_refuses_wrong_values(door: str) -> None:
    seen: set[str] = set()
    for key, field in leaves(DOORS[door]):
        if key in ("prompt", "stop"):
            continue
        kind = str(field.annotation)
        values = wrong_values(kind)
        if kind in seen:
            values = values[:2]  # the rest of this type's values was tried on another key
        seen.add(kind)
        for value in values:
            if len(value) == 1000 and key in PATHS:
                continue  # a long path is text like any other until it is opened
            message = refused(door, [f"{key}={value}"])
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
        st.sampled_from([key for key, _ in leaves(TrainConfig)] + ["model", "data", "hydra.verbose", "x.y", ""]),
        st.one_of(st.text(max_size=12), st.sampled_from(["{", "[", "${", "'", '"', "1,2", "choice(1)", "range(1,2)"])),
    ),
)


@given(st.lists(WORDS, min_size=1, max_size=3), st.sampled_from([[], ["-m"]]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_overrides_never_crash(words: list[str], flags: list[str]) -> None:
    """Whatever is typed is either a valid config or one line; never another exception."""
    if any(word.lstrip().startswith(("-h", "--help", "-c", "-i", "-sc", "--")) for word in words):
        words = ["x" + word for word in words]
    try:
        points("train", TrainConfig, words, multirun=bool(flags))
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
    for key, field in leaves(TrainConfig):
        if "float" in str(field.annotation):
            refused("train", [f"{key}=nan"])
