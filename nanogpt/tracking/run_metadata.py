"""Names and config of a run as trackers get them, without paths of this machine and without secrets."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanogpt.config import TrackerName, TrackingConfig, TrainConfig
from nanogpt.errors import BadEnvironment, hint, one_line
from nanogpt.estimates.flops import parameter_counts
from nanogpt.redaction import HIDDEN, find_secret, redact, redact_all, secret_values
from nanogpt.schema import identity_fields
from nanogpt.tracking.origin import get_run_id

PROJECT = "nanogpt-lab"
PLAIN = "runs"  # folder of runs that belong to no study
WANDB_KEY = re.compile(r"\b[0-9a-f]{40}\b")
ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class RunMetadata:
    """A run, for its trackers."""

    path: Path
    """The run directory; not sent."""
    id: str
    name: str
    group: str | None
    config: dict[str, Any]
    """The part of the config that is sent, and `run`: facts about the last start."""
    settings: TrackingConfig
    diff: str = ""
    """Uncommitted changes of the code, if they are sent."""

    @property
    def project(self) -> str:
        return self.settings.project or os.environ.get("WANDB_PROJECT") or PROJECT


MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


def wandb_mode(settings: TrackingConfig) -> str:
    """Return W&B's mode: online, offline or disabled.

    Raises BadEnvironment for an unknown WANDB_MODE, which may have been meant to prevent sending.
    """
    mode = settings.mode or os.environ.get("WANDB_MODE") or "online"
    if mode not in MODES:
        allowed = f"allowed: one of {', '.join(MODES)}"
        raise BadEnvironment(f"WANDB_MODE={one_line(mode)}: not a choice; {allowed}{hint(mode, MODES)}")
    return MODES[mode]


def enabled_trackers(settings: TrackingConfig) -> list[TrackerName]:
    """Return the trackers of the config, each once, without a disabled W&B."""
    names = list(dict.fromkeys(settings.trackers))
    return [name for name in names if name != "wandb" or wandb_mode(settings) != "disabled"]


def make_run_metadata(config: TrainConfig, path: Path, starts: Sequence[Mapping[str, Any]]) -> RunMetadata:
    """Return the metadata of a run with these starts in provenance.json."""
    first, last = (starts[0], starts[-1]) if starts else ({}, {})
    git = as_dict(last.get("git")) if config.tracking.send_code else {}
    folder = path.resolve().parent.name
    study = config.tracking.group or (folder if folder != PLAIN else None)
    return RunMetadata(
        path=path,
        id=get_run_id(path, first),
        name=re.sub(r"-[0-9a-f]{8}(?=-[0-9]+$|$)", "", path.name) if study else path.name,
        group=study,
        config=public_config(config) | {"run": start_facts(config, last, git)},
        settings=config.tracking,
        diff=redact(str(git.get("diff") or "")),
    )


def start_facts(config: TrainConfig, start: Mapping[str, Any], git: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a start in provenance.json tells about the model, the data, the job and the code, if known.

    It was redacted when it was written; a commit looks like a key of W&B, so `remove_private` would hide it.
    """
    vocab_size = as_dict(start.get("measurement")).get("vocab_size")
    known_size = isinstance(vocab_size, int)
    facts = {
        "parameters": parameter_counts(config.model.with_vocab(vocab_size))["total"] if known_size else None,
        "vocab_size": vocab_size,
        "data_fingerprint": start.get("data"),
        "train_tokens": start.get("train_tokens"),
        "device": start.get("device"),
        "ranks": as_dict(start.get("arithmetic")).get("ranks"),
        "job": start.get("job"),
        "node": start.get("host") if start.get("job") else None,
        "commit": git.get("commit"),
        "changed_files": [str(line)[3:] for line in git.get("changed") or ()] or None,  # without git's two letters
    }
    return redact_all({name: value for name, value in facts.items() if value is not None})


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def public_config(config: TrainConfig) -> dict[str, Any]:
    """Return the identity fields and the hardware of a config, without paths of this machine and without secrets."""
    everything = identity_fields(config) | {"hardware": config.hardware.model_dump(mode="json")}
    for label in ("model", "data"):
        everything[label] = {"name": getattr(config, label).name} | everything[label]
    return remove_private(everything, secret_values())


def remove_private(value: Any, secrets: Mapping[str, str]) -> Any:
    """Return a value without secrets and credentials; of an absolute path only the last part."""
    if isinstance(value, dict):
        return {key: remove_private(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list):
        return [remove_private(inner, secrets) for inner in value]
    if not isinstance(value, str):
        return value
    value = ADDRESS.sub("", value)
    if WANDB_KEY.search(value) or find_secret(value, secrets):
        return HIDDEN
    path = Path(value)
    return path.name if path.is_absolute() or value.startswith(("~", "..")) else value
