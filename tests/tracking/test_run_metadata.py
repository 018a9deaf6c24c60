"""Names and values that are sent to trackers, and whether W&B is online."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanogpt.config import TrackingConfig, TrainConfig
from nanogpt.errors import BadEnvironment
from nanogpt.model.gpt import GPT
from nanogpt.tracking.run_metadata import (
    HIDDEN,
    RunMetadata,
    enabled_trackers,
    make_run_metadata,
    remove_private,
    wandb_mode,
)
from nanogpt.tracking.trackers import check_trackers

Build = Callable[..., TrainConfig]


def test_the_mode_is_the_configs_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(mode: Any) -> TrackingConfig:
        return TrackingConfig(trackers=("wandb", "tensorboard", "wandb"), mode=mode)

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_mode(both(None)) == "online" and enabled_trackers(both(None)) == ["wandb", "tensorboard"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert enabled_trackers(both(None)) == ["tensorboard"] and wandb_mode(both("offline")) == "offline"


def test_a_wandb_mode_that_is_none_doesn_t_go_online(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, mode in (("run", "online"), ("dryrun", "offline"), ("", "online")):
        monkeypatch.setenv("WANDB_MODE", word)
        assert wandb_mode(TrackingConfig(trackers=("wandb",))) == mode
    monkeypatch.setenv("WANDB_MODE", "offlin")
    assert wandb_mode(TrackingConfig(trackers=("wandb",), mode="disabled")) == "disabled"
    with pytest.raises(BadEnvironment, match=r"WANDB_MODE=offlin: not a choice; .*did you mean 'offline'"):
        check_trackers(TrackingConfig(trackers=("wandb",)))
    check_trackers(TrackingConfig())


def test_names(config: Build, tmp_path: Path) -> None:
    """A point of a study is named by what it changes, a single run by its folder."""
    born = [{"time": "now", "host": "here", "pid": 1}]
    point = make_run_metadata(config(), tmp_path / "widths" / "n_embd=64-1a2b3c4d", born)
    assert (point.group, point.name, point.project) == ("widths", "n_embd=64", "nanogpt-lab")
    assert make_run_metadata(config(), tmp_path / "widths" / "n_embd=64-1a2b3c4d-2", born).name == "n_embd=64-2"
    alone = make_run_metadata(config(), tmp_path / "runs" / "tiny-1a2b3c4d", born)
    assert (alone.group, alone.name) == (None, "tiny-1a2b3c4d")
    assert make_run_metadata(config(**{"tracking.group": "mine"}), alone.path, born).group == "mine"
    assert alone.id == make_run_metadata(config(), tmp_path / "elsewhere" / "tiny-1a2b3c4d", born).id
    assert alone.id != make_run_metadata(config(), alone.path, [born[0] | {"time": "later"}]).id


def test_facts_about_the_last_start(config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node of a job, but of no other machine; the commit and the changes on request, without secrets."""
    commit, secret = "0123456789abcdef0123456789abcdef01234567", "correct-horse-battery"
    monkeypatch.setenv("MY_API_TOKEN", secret)
    git = {"commit": commit, "changed": [" M nanogpt/a.py"], "diff": f"+key = {secret}\n+hf_{'a' * 20}"}
    start = {
        "measurement": {"vocab_size": 256},
        "data": "f1",
        "train_tokens": 9,
        "git": git,
        "host": "n7",
        "job": "5_1",
    }
    start |= {"device": "a CPU", "arithmetic": {"ranks": 2}}

    def sent(start: dict[str, Any], **changes: object) -> RunMetadata:
        return make_run_metadata(config(**changes), tmp_path, [{"host": "first"}, start])

    built = config()
    facts = {"vocab_size": 256, "data_fingerprint": "f1", "train_tokens": 9, "device": "a CPU", "ranks": 2}
    facts["parameters"] = sum(p.numel() for p in GPT(built.model.with_vocab(256)).parameters())
    assert sent(start).config["run"] == facts | {"job": "5_1", "node": "n7"} and sent(start).diff == ""
    assert sent(start | {"job": None}).config["run"] == facts
    shown = sent(start | {"job": None}, **{"tracking.send_code": True})
    assert shown.config["run"] == facts | {"commit": commit, "changed_files": ["nanogpt/a.py"]}
    assert shown.diff == "+key = <hidden>\n+<hidden>"
    for unknown in ({}, {"measurement": [], "git": "x", "arithmetic": None}):
        assert sent(unknown, **{"tracking.send_code": True}).config["run"] == {}
    assert make_run_metadata(built, tmp_path, []).config["run"] == {}


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("/home/me/notes/*.txt", "*.txt"),
        ("~/notes", "notes"),
        ("../x/corpus.txt", "corpus.txt"),
        ("notes/*.txt", "notes/*.txt"),
        ("https://me:pw@host/x", "https://host/x"),
        ("hf_abcdefghijklmnopqrstuvwxyz", HIDDEN),
        ("x-0123456789abcdef0123456789abcdef01234567", HIDDEN),
        ("my secret value", HIDDEN),
        ("openwebtext", "openwebtext"),
    ],
)
def test_values_are_cleaned(value: str, sent: str) -> None:
    assert remove_private({"a": [value, 1, None]}, {"secret value": "MY_PASSWORD"}) == {"a": [sent, 1, None]}
