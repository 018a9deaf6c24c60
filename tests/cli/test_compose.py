"""Every YAML composes, validates and means what it says; the commands answer questions fast and without torch."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cli.commands import COMMANDS
from cli.compose import HORIZON
from cli.config_files import choices, groups
from cli.entry import help_page
from cli.quoting import format_override
from cli.sweep_keys import sweep_fields
from cli.sweep_request import read_configs
from nanogpt.config import EvaluateConfig, ModelConfig, SampleConfig, TrainConfig
from nanogpt.estimates.flops import parameter_counts
from nanogpt.interop.architecture import GPT2_DEFAULTS, SIZES
from nanogpt.schema import iter_fields
from tests.cli_helpers import CONFIGS
from tests.commands import ask_all, command

ROOT = Path(__file__).parents[2]
SOURCE = "data.source=a.txt"


def train(*overrides: str) -> TrainConfig:
    return read_configs("train", TrainConfig, list(overrides))[0]


NEEDED = {
    "data=text": [SOURCE],
    "hardware=2x8xh100": ["model=gpt2"],
    "model=pretrained": ["init_from=gpt2"],
}  # what a choice can't do without
CHOICES = [f"{group}={name}" for group in groups("train") for name in choices(group)]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_is_what_its_name_says(choice: str) -> None:
    config = train(choice, *NEEDED.get(choice, []))
    group, _, name = choice.partition("=")
    if group not in ("hardware", "experiment") and name != "pretrained":
        assert getattr(config, group).name == name
    if group == "experiment":
        assert config.name == name


MODELS = [*choices("model")]


@pytest.mark.parametrize(
    ("model", "every"),
    [*((model, False) for model in MODELS), *(pytest.param(m, True, marks=pytest.mark.slow) for m in MODELS)],
)
def test_every_model_trains_on_every_data_set(model: str, every: bool) -> None:
    sets = choices("data")
    for data in sets if every else [sets[MODELS.index(model) % len(sets)]]:
        source = [] if data == "pystdlib" else [SOURCE]
        config = train(f"model={model}", f"data={data}", *source, *NEEDED.get(f"model={model}", []))
        assert (config.model.name, config.data.name) == ("gpt2" if model == "pretrained" else model, data)


@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_in_a_yaml_is_a_knob(path: Path) -> None:
    command = {"eval": EvaluateConfig, "task": SampleConfig}.get(path.parent.name, TrainConfig)
    keys = {key for key, _ in iter_fields(command)}
    text = path.read_text()
    prefix = "" if "@package _global_" in text else f"{path.parent.name}."
    content = OmegaConf.load(path)
    assert isinstance(OmegaConf.to_container(content), dict)
    content.pop("defaults", None)
    flat: Any = OmegaConf.to_container(content)
    sweep = flat.pop("sweep", {})
    assert {f"sweep.{name}" for name in sweep} <= sweep_fields().keys() and sweep.get("grid", {}).keys() <= keys

    def walk(value: Any, at: str) -> None:
        for name, inner in value.items():
            if isinstance(inner, dict):
                walk(inner, f"{at}{name}.")
            else:
                assert at + name in keys, at + name

    walk(flat, prefix)


@pytest.mark.parametrize("command", CONFIGS)
def test_every_knob_can_be_set_from_the_command_line(command: str) -> None:
    """Setting each key to the value it has changes nothing, and no key is out of reach."""
    config = read_configs(command, CONFIGS[command], [])[0]
    for key, _ in iter_fields(CONFIGS[command]):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        text = "null" if value is None else str(list(value) if isinstance(value, tuple) else value)
        if key in ("prompt", "stop", "task.template", "target") or (key in HORIZON and value is None):
            continue  # free text; and a horizon that is set replaces the others
        found = read_configs(command, CONFIGS[command], [f"{key}={text}"])[0]
        if key == "eval.every":  # an interval that is typed is kept however short the run is
            assert not found.eval.fit
            found = found.model_copy(update={"eval": config.eval})
        assert found == config, key


def test_nanogpts_recipes() -> None:
    """The numbers of nanoGPT's README and config/ files."""
    cpu = train("experiment=shakespeare_char_cpu")
    assert (cpu.model.n_layer, cpu.model.n_head, cpu.model.n_embd, cpu.model.block_size) == (4, 4, 128, 64)
    assert (cpu.training.batch_tokens, cpu.training.steps) == (12 * 64, 2000)
    assert (cpu.model.dropout, cpu.model.bias) == (0.0, False)
    baby = train("experiment=shakespeare_char")
    assert (baby.model.n_layer, baby.model.n_head, baby.model.n_embd, baby.model.block_size) == (6, 6, 384, 256)
    assert (baby.training.batch_tokens, baby.training.steps, baby.model.dropout) == (64 * 256, 5000, 0.2)
    for config in (cpu, baby):
        assert (config.optimizer.lr, config.schedule.min_lr_ratio, config.schedule.warmup_steps) == (1e-3, 0.1, 100)
        assert config.optimizer.betas[1] == 0.99
    gpt2 = train("experiment=gpt2_124m")
    assert (gpt2.training.batch_tokens, gpt2.training.steps) == (491_520, 600_000)
    assert (gpt2.optimizer.lr, gpt2.schedule.warmup_steps, gpt2.optimizer.weight_decay) == (6e-4, 2000, 0.1)
    assert gpt2.model.with_vocab(50_257).padded_vocab_size == 50_304


def test_an_optimizer_chosen_brings_its_rates_and_adamw_takes_the_models() -> None:
    assert [train(f"model={name}").optimizer.lr for name in ("tiny", "baby", "gpt2")] == [5e-3, 1e-3, 6e-4]
    for words in (("optimizer=muon", "model=gpt2"), ("optimizer=normuon", "model=tiny")):
        assert (train(*words).optimizer.lr, train(*words).optimizer.embedding_lr) == (0.02, 3e-3)


def test_the_command_line_wins_over_every_file() -> None:
    config = train("experiment=shakespeare_char_cpu", "model=baby", "optimizer.lr=3e-4", "model.dropout=0.3")
    assert (config.model.n_embd, config.optimizer.lr, config.model.dropout) == (384, 3e-4, 0.3)


@pytest.mark.parametrize(
    "word", ["training.steps=7", "training.tokens=5000", "training.tokens_per_param=3", "training.flops=1e15"]
)
@pytest.mark.parametrize("model", ["tiny", "gpt2"])
def test_a_horizon_on_the_command_line_replaces_the_presets(model: str, word: str) -> None:
    training = train(f"model={model}", word, "schedule.warmup_steps=0").training
    given = {name: getattr(training, name) for name in ("steps", "tokens", "tokens_per_param", "flops")}
    key, _, value = word.removeprefix("training.").partition("=")
    assert given[key] == float(value) and list(given.values()).count(None) == 3


@pytest.mark.parametrize(
    "name",
    ["quickstart", "shakespeare_char_fast_cpu", "shakespeare_char_fast", "modern_124m", "fast_rates", "recipe_parts"],
)
def test_fast_recipes(name: str) -> None:
    """The modern form and Muon; rates that were found at 128 channels stay so, or are carried over by muP."""
    config = train(f"experiment={name}")
    assert config.optimizer.name == "muon" and config.schedule.name == "wsd" and not config.model.tie_weights
    assert config.model.n_embd == 128 or (config.parametrization.name, config.parametrization.base_width) == (
        "mup",
        128,
    )
    assert parameter_counts(config.model.with_vocab(50_257))["total"] < 124_439_808, "not more than GPT-2 small"


def test_each_switch_of_the_network_is_known_of_weights_from_elsewhere() -> None:
    """One that isn't would be lost where a training starts from weights that have it."""
    decided = ModelConfig.model_fields.keys() - {"name", "dropout", "vocab_multiple", "init", "zero_init"}
    assert decided == {*GPT2_DEFAULTS, *SIZES, "bias", "activation"}
    chosen = OmegaConf.load(ROOT / "conf" / "model" / "pretrained.yaml").model
    assert decided == {key for key, value in chosen.items() if value is None}


def test_sweeps_are_every_combination_checked() -> None:
    configs = read_configs("train", TrainConfig, ["optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1"], multirun=True)
    found = {(config.optimizer.lr, config.model.dropout) for config in configs}
    assert found == set(itertools.product((1e-3, 3e-4), (0, 0.1)))


def test_free_text_needs_no_quoting() -> None:
    for text in ("def f(x): # a=b, c", "", " spaces ", "日本語", "{[(", "'", "${x}"):
        assert read_configs("sample", SampleConfig, [f"prompt={text}"])[0].prompt == text
    assert read_configs("sample", SampleConfig, ["prompt='quoted '"])[0].prompt == "quoted "


def test_values_may_refer_to_each_other() -> None:
    assert train("eval.every=${training.steps}").eval.every == 1000


@pytest.mark.parametrize("command", CONFIGS)
def test_help_pages_name_every_choice(command: str) -> None:
    page = help_page(command, CONFIGS[command], [])
    for group in groups(command):
        for name in choices(group):
            assert name in page
    everything = help_page(command, CONFIGS[command], ["all"])
    for key, field in iter_fields(CONFIGS[command]):
        assert key in everything and str(field.description) in everything


FAST = [["--help"], ["--help", "optimizer"], ["--cfg", "job"], ["--info", "defaults"], ["model=gpt3"]]


def test_questions_are_answered_without_torch(tmp_path: Path) -> None:
    done = ask_all(str(ROOT / "train.py"), FAST, tmp_path)
    assert [(code, loaded) for code, _, loaded in done] == [*[(0, [])] * 4, (2, [])]
    assert not list(tmp_path.iterdir()), "asking creates nothing"


def test_cfg_job_prints_the_resolved_config(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "model=baby", "optimizer.lr=5e-4", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    printed: Any = OmegaConf.to_container(OmegaConf.create(done.stdout))
    assert (printed["model"]["n_embd"], printed["optimizer"]["lr"]) == (384, 5e-4)


def test_tab_completion(tmp_path: Path) -> None:
    """What bash asks for `python train.py model=gpt2_<TAB>` once `-sc install=bash` has been evaluated."""
    command = [sys.executable, str(ROOT / "train.py"), "-sc", "query=bash"]
    environment = {"COMP_LINE": "python train.py model=gpt2_", "COMP_POINT": "27", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["model=gpt2_large", "model=gpt2_medium", "model=gpt2_modern", "model=gpt2_xl"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nanogpt train model=gpt2_", ["model=gpt2_large", "model=gpt2_medium", "model=gpt2_modern", "model=gpt2_xl"]),
        ("nanogpt evaluate eval=l", ["eval=lambada", "eval=loss"]),
        ("nanogpt tr", list(COMMANDS)),
        ("nanogpt status run", []),
        ("nanogpt nosuch model=", []),
    ],
)
def test_tab_completion_of_the_one_command(tmp_path: Path, line: str, expected: list[str]) -> None:
    done = command("-m", "cli", "-sc", "query=bash", folder=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", expected)


@pytest.mark.parametrize("words", [["-sc", "install=bash"], ["train", "-sc", "install=bash"]])
def test_a_shell_learns_to_complete_the_one_command(tmp_path: Path, words: list[str]) -> None:
    code = "import sys; sys.argv[0] = 'lab/bin/nanogpt'; from cli.commands import main; main()"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.stdout.rstrip().endswith("complete -o nospace -o default -F hydra_bash_completion nanogpt")


def test_a_files_warm_up_that_is_longer_than_the_run_is_a_tenth_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    usual, short = train("model=tiny"), train("model=tiny", "training.steps=60")
    assert usual.schedule.warmup_steps > 60 and short.schedule.warmup_steps == 6
    said = capsys.readouterr().err
    assert said.count("note: schedule.warmup_steps=100 of the files is longer than the run; 6 is used") == 1
    assert short == train("model=tiny", "training.steps=60", "schedule.warmup_steps=6")
    tokens = 59 * short.training.batch_tokens + 1  # 60 steps
    assert train("model=tiny", f"training.tokens={tokens}").schedule.warmup_steps == 6
    assert train("model=tiny", "training.steps=150").schedule.warmup_steps == usual.schedule.warmup_steps


@pytest.mark.parametrize("words", ["train --help", "status --help", "submit --help", "report --help", "--help"])
def test_help_waits_for_neither_hydra_nor_torch(words: str) -> None:
    code = (
        f"import sys; sys.argv[1:] = {words.split()}\nfrom cli.commands import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    sys.exit(end.code or len({'hydra', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.parametrize("value", [{}, {"a": 1, "b": "x y", "c": [True, None]}, ["a,b", 0.5], "", "null"])
def test_hydra_reads_back_what_is_written_for_it(value: object) -> None:
    assert OverridesParser.create().parse_override(format_override("key", value)).value() == value
