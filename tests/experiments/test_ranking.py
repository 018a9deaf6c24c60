"""Seeds are one setting, keys that change together one axis; best first, and the command that repeats it."""

import json
import os
import shlex
from pathlib import Path

import pytest

from cli.argv import collect_targets
from cli.quoting import quote
from cli.sweep_request import read_configs, read_sweep
from experiments.find import find_runs, read_statuses
from experiments.ranking import SeedGroup, find_varied_keys, group_by_seed, group_name, sort_groups
from experiments.reproduce import reproduce_command
from experiments.results import RunResult, find_missing_points, read_results
from launch.study import plan_study
from nanogpt.config import ReportConfig, TargetsConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.schema import signature
from tests.experiments.fake_runs import seeds, write_run


def results(folder: Path) -> list[RunResult]:
    statuses, _ = read_statuses(find_runs(TargetsConfig(targets=(str(folder),))))
    return read_results(statuses)[0]


def found(folder: Path) -> list[SeedGroup]:
    return group_by_seed(results(folder))


def test_seeds_are_one_setting_and_losses_their_means(tmp_path: Path) -> None:
    seeds(tmp_path, [2.0, 2.2, 2.4], **{"optimizer.lr": 1e-2})
    seeds(tmp_path, [1.9, 2.1], **{"optimizer.lr": 1e-3})
    good, rest = sort_groups(found(tmp_path), "val_loss")
    (axis,) = find_varied_keys([*good, *rest])
    assert [group_name(setting, [axis]) for setting in good] == ["lr=0.001", "lr=0.01"] and not rest
    means = [setting.loss("val_loss") for setting in good]
    assert [(one.mean, one.n) for one in means if one] == [(pytest.approx(2.0), 2), (pytest.approx(2.2), 3)]


def test_the_metric_decides(tmp_path: Path) -> None:
    write_run(tmp_path, [5.0, 1.5, 3.0], **{"optimizer.lr": 1e-2})
    write_run(tmp_path, [5.0, 2.5, 2.0], **{"optimizer.lr": 1e-3})
    rates = {
        metric: [s.first.config.optimizer.lr for s in sort_groups(found(tmp_path), metric)[0]]
        for metric in ("val_loss", "best_val_loss")
    }
    assert rates == {"val_loss": [1e-3, 1e-2], "best_val_loss": [1e-2, 1e-3]}


def test_only_finished_runs_rank(tmp_path: Path) -> None:
    write_run(tmp_path, [5.0, 3.0], **{"optimizer.lr": 1e-2, "training.seed": 1})
    write_run(tmp_path, [5.0, 1.0], name="b", state="stopped", **{"optimizer.lr": 1e-2, "training.seed": 2})
    write_run(tmp_path, [5.0, 1.0], name="c", state="diverged", **{"optimizer.lr": 1.0})
    good, rest = sort_groups(found(tmp_path), "val_loss")
    assert [len(setting.results) for setting in good] == [2] and good[0].losses("val_loss") == [3.0]
    assert [setting.states for setting in rest] == [{"diverged": 1}]


def test_a_diverged_seed_doesn_t_flatter_the_mean(tmp_path: Path) -> None:
    """Two of three come far, one diverges: no better than a setting that is a little worse, and safe."""
    for i, state in enumerate(("finished", "finished", "diverged")):
        write_run(tmp_path, [5.0, 2.0], name=f"wild{i}", state=state, **{"optimizer.lr": 1.0, "training.seed": i})
    seeds(tmp_path, [2.2, 2.3, 2.4], **{"optimizer.lr": 1e-3})
    good, rest = sort_groups(found(tmp_path), "val_loss")
    assert [(s.first.config.optimizer.lr, len(s.losses("val_loss"))) for s in good] == [
        (1e-3, 3),
        (1.0, 2),
    ] and not rest


def test_keys_that_change_together_are_one_axis(tmp_path: Path) -> None:
    for lr in (1e-3, 1e-2):
        for label, width in (("small", 16), ("large", 32)):
            shape = {"model.name": label, "model.n_embd": width, "training.batch_tokens": 8 * width}
            write_run(tmp_path, [5.0, 3.0], name=f"{label}{lr}", **{"optimizer.lr": lr} | shape)
    varied = find_varied_keys(found(tmp_path))
    assert [axis.key for axis in varied] == ["optimizer.lr", "model"]
    assert varied[1].others == ("model.n_embd", "training.batch_tokens")
    assert {varied[1].value(setting) for setting in found(tmp_path)} == {"small", "large"}


def test_another_attempt_is_no_other_seed(tmp_path: Path) -> None:
    path = write_run(tmp_path, [5.0, 3.0])
    second = path.with_name(f"{path.name}-2")
    second.mkdir()
    for file in path.iterdir():
        (second / file.name).write_bytes(file.read_bytes())
    assert [setting.attempt for setting in found(tmp_path)] == [1, 2]


def sweep(folder: Path, *words: str) -> list[TrainConfig]:
    """Return the configs of the points of `python train.py -m words…`."""
    return [member.config for member in plan_study(read_sweep("train", TrainConfig, list(words), multirun=True)).runs]


def test_points_that_never_started_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["name=rates", "optimizer.lr=1e-3,3e-3,1e-2", "training.steps=20", "schedule.warmup_steps=0"]
    configs = sweep(tmp_path, *words)
    start = {"command": ["train.py", "-m", *words]}
    for config in configs[:2]:
        assert config.name is not None
        write_run(tmp_path / config.runs_dir, [5.0, 4.0, 3.0], name=config.name, config=config, starts=[start])
    study = Path("runs/rates")
    left = find_missing_points(results(study), [study])
    assert [(one.status.state, one.config.optimizer.lr) for one in left] == [("missing", 1e-2)]
    assert "never started" in left[0].status.why
    monkeypatch.chdir("/")
    assert len(find_missing_points(results(tmp_path / study), [tmp_path / study])) == 1, "from wherever it is asked"
    one = next((tmp_path / study).iterdir())
    assert find_missing_points(results(one), [one]) == [], "a run is no study"
    write_run(tmp_path / study, [5.0, 4.0, 3.0], name=str(configs[2].name), config=configs[2], starts=[start])
    assert find_missing_points(results(tmp_path / study), [tmp_path / study]) == []


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "-m", "optimizer.lr=abc,1"],
        ["train.py", "-m", "no.such=1,2"],
        ["sample.py"],
        ["train.py", "-m"],
        "x",
        [1],
        None,
    ],
    ids=str,
)
def test_commands_that_mean_nothing_any_more(tmp_path: Path, command: object) -> None:
    write_run(tmp_path / "study", [5.0, 3.0], starts=[{"command": command}])
    assert find_missing_points(results(tmp_path / "study"), [tmp_path / "study"]) == []


CONFIGS = [
    ["experiment=quickstart"],
    ["experiment=shakespeare_char_cpu", "optimizer.lr=3e-4"],
    ["model=gpt2", "data=openwebtext", "hardware=8xh100"],
    ["model=tiny", "training.flops=1e12", "schedule.warmup_steps=3", "schedule=wsd"],
    ["data=text", "data.source='my notes/*.txt'", "data.tokenizer=bpe", "data.vocab_size=512", "eval.tokens=null"],
    [
        "data=text",
        "data.source='it\\'s = 日本, ${x}'",
        "optimizer.betas=[0.8,0.99]",
        "training.eval_tasks=[lambada,hellaswag]",
    ],
]


@pytest.mark.parametrize("words", CONFIGS, ids=" ".join)
def test_the_command_repeats_the_science(words: list[str]) -> None:
    (config,) = read_configs("train", TrainConfig, [word.replace("${", "\\${") for word in words])
    command = reproduce_command(config)
    assert command is not None and command.startswith("nanogpt train ")
    (again,) = read_configs("train", TrainConfig, shlex.split(command)[2:])
    assert signature(again) == signature(config) and again.hardware == config.hardware


def test_a_file_of_ones_own_that_is_no_run_by_itself(experiment: Path) -> None:
    """Without a horizon, and with a warm-up that is longer than what was trained."""
    experiment.write_text("# @package _global_\nname: mine\nmodel: {n_layer: 1}\ntraining: {steps: null}\n")
    (config,) = read_configs("train", TrainConfig, ["experiment=mine", "training.steps=4", "schedule.warmup_steps=1"])
    command = reproduce_command(config)
    assert command is not None
    assert signature(read_configs("train", TrainConfig, shlex.split(command)[2:])[0]) == signature(config)


def test_weights_are_not_read_for_a_command() -> None:
    (config,) = read_configs("train", TrainConfig, ["init_from=gpt2", "data=shakespeare"])
    assert reproduce_command(config) is None


NAMES = ["runs/a", "a b", "it's", "a\\", "${oc.env:HOME}", "a,b", "[x]", '"q"', "日本", "null", "1e-3", "{a}", "a*?"]


@pytest.mark.parametrize("text", NAMES)
def test_names_reach_the_config_as_they_are(text: str) -> None:
    words = collect_targets([text, "second", "x=time"])
    (config,) = read_configs("report", ReportConfig, words)
    assert (config.targets, config.x) == ((text, "second"), "time")
    assert quote(text) in words[-1]


def test_a_path_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("lr=3")
    (config,) = read_configs("report", ReportConfig, collect_targets(["lr=3", "metric=best_val_loss"]))
    assert config.targets == ("lr=3",)
    with pytest.raises(BadInput, match="no such option"):
        collect_targets(["runs/a", "--best"])


def test_a_config_of_an_older_program_is_read(tmp_path: Path) -> None:
    """Keys that came later have their defaults."""
    path = write_run(tmp_path, [5.0, 3.0])
    values = json.loads((path / "config.json").read_text())
    del values["model"]["qk_norm"], values["checkpoint"]
    (path / "config.json").write_text(json.dumps(values))
    assert len(results(tmp_path)) == 1
