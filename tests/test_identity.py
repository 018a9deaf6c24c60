"""A run's identity is stable: configs of the first release keep their signatures, whatever keys are added."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.sweep_request import read_sweep
from nanogpt import schema
from nanogpt.config import SyncConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.fields import free, guarded
from nanogpt.run_identity import equivalent_configs
from nanogpt.schema import (
    NEVER,
    ConfigModel,
    change_policy,
    earlier_value,
    former_name,
    from_stored,
    iter_fields,
    signature,
)

TABLE = json.loads((Path(__file__).parent / "signatures.json").read_text())
"""Written by commit bb3612a: `first` has every key of a config, each of `configs` what differs from that, the command
that gives it (null for a point of a sweep), and its signature."""


def stored(changes: dict[str, Any]) -> dict[str, Any]:
    """A config.json as bb3612a wrote it."""
    nested: dict[str, Any] = {}
    for key, value in (TABLE["first"] | changes).items():
        *groups, leaf = key.split(".")
        section = nested
        for group in groups:
            section = section.setdefault(group, {})
        section[leaf] = value
    return nested


RENAMED = {
    f"{key.rpartition('.')[0]}{'.' if '.' in key else ''}{was}": key
    for key, field in iter_fields(TrainConfig)
    if (was := former_name(field))
}
"""Former names of keys: their names now."""


def with_new_names(command: str) -> list[str]:
    """The words of a command, each key under the name that it has now."""
    words = [word.partition("=") for word in command.split()]
    return ["".join((RENAMED.get(key, key), *rest)) for key, *rest in words]


def check_signature(config: TrainConfig, row: dict[str, Any]) -> None:
    """It is the old one; where a precision was named that the device hasn't anyway, the old one is looked for too."""
    precision, fp8 = config.hardware.precision, config.hardware.fp8
    if fp8 or (precision != "auto" and "precision" not in config.hardware.keys_without_effect()):
        assert signature(config) != row["signature"] in map(signature, equivalent_configs(config)), row
    else:
        assert signature(config) == row["signature"], row


def test_stored_configs_keep_their_signatures() -> None:
    for row in TABLE["configs"]:
        check_signature(from_stored(TrainConfig, stored(row["changes"])), row)


@pytest.mark.parametrize(
    "row", [row for row in TABLE["configs"] if row["command"] is not None], ids=lambda r: r["command"]
)
def test_the_same_command_has_the_same_signature(row: dict[str, Any]) -> None:
    """A preset or default that changes must not make today's command another run than yesterday's."""
    check_signature(read_sweep("train", TrainConfig, with_new_names(row["command"])).points[0].config, row)


def test_every_later_key_says_what_reproduces_earlier_behaviour() -> None:
    """`earlier=` is required of each key that isn't free and that bb3612a didn't have."""
    for key, field in iter_fields(TrainConfig):
        if key not in TABLE["first"] and key not in RENAMED.values() and change_policy(field) != "free":
            assert earlier_value(field) is not NEVER, f"{key}: give earlier=…, see knob in nanogpt/fields.py"


@pytest.mark.parametrize("former", RENAMED)
def test_a_former_name_is_answered_with_the_new_one(former: str) -> None:
    with pytest.raises(BadInput, match=rf"^{re.escape(former)}: was renamed to {re.escape(RENAMED[former])}$"):
        read_sweep("train", TrainConfig, [f"{former}=1"])
    values = json.loads(schema.to_json(read_sweep("train", TrainConfig, []).points[0].config))
    section = values
    *groups, leaf = RENAMED[former].split(".")
    for group in groups:
        section = section[group]
    section[former.rpartition(".")[2]] = section.pop(leaf)
    with pytest.raises(BadInput, match="was renamed to"):
        schema.from_dict(TrainConfig, values)
    assert schema.to_json(from_stored(TrainConfig, values)) == schema.to_json(
        read_sweep("train", TrainConfig, []).points[0].config
    )


def test_former_names_of_other_commands_keys() -> None:
    with pytest.raises(BadInput, match=r"hydra\.launcher.max_fruitless: was renamed to hydra\.launcher.max_restarts"):
        read_sweep(
            "train",
            TrainConfig,
            ["hydra/launcher=submitit_local", "hydra.launcher.max_fruitless=1", "training.seed=1,2"],
            True,
        )
    with pytest.raises(BadInput, match=r"^mirrors: was renamed to trackers$"):
        read_sweep("sync", SyncConfig, ["mirrors=[wandb]"])


class Before(ConfigModel):
    """A config with one key."""

    lr: float = guarded(1.0, "a rate")


class Inner(ConfigModel):
    """A section that was added later."""

    decay: float | None = guarded(0.9, "a decay", earlier=None)


class After(ConfigModel):
    """The same config with keys that were added, one of them with another default than what was."""

    lr: float = guarded(1.0, "a rate")
    mode: str = guarded("new", "a mode", earlier="old")
    speed: int = free(1, "changes no result")
    ema: Inner = guarded(Inner(), "a section")


def test_an_added_key_counts_only_where_it_changes_behaviour() -> None:
    old = signature(Before())
    assert signature(After(mode="old", ema=Inner(decay=None))) == old
    assert signature(After(ema=Inner(decay=None))) != old != signature(After(mode="old"))
    assert len({signature(After()), signature(After(mode="other")), signature(After(ema=Inner(decay=0.5)))}) == 3


def test_a_stored_config_without_the_key_is_read_as_what_it_did() -> None:
    """Not as the new default."""
    read_back = from_stored(After, json.loads(schema.to_json(Before(lr=2.0))))
    assert read_back == After(lr=2.0, mode="old", ema=Inner(decay=None))
    assert signature(read_back) == signature(Before(lr=2.0))
    assert from_stored(After, json.loads(schema.to_json(After()))) == After()
