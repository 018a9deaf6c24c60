"""The run that a config means, identified by the content of its data and by its precision.

The name of a run directory ends in the first digits of a signature, for a new run those of `short_signature`. An
existing run may have other digits: its precision was `auto`, or an earlier version hashed the path of its source.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from nanogpt.config import DataConfig, HardwareConfig, Precision, TrainConfig
from nanogpt.data.content import token_folder
from nanogpt.data.dataset import open_dataset
from nanogpt.data.folders import folder_by_path, is_prepared, is_up_to_date, resolve_source
from nanogpt.data.prepare import is_made_from_source, reuse_path_folder
from nanogpt.entry_names import SHORT_DIGITS
from nanogpt.errors import BadCheckpoint, BadData
from nanogpt.files import mtime, read_json_bytes
from nanogpt.schema import read_config, signature
from nanogpt.weights_digest import with_weights_digest

CONTENTS = {"data.source": "data.source_sha256", "init_from": "init_from_sha256"}
"""{key that names files: key of the digest of their content}."""


def resolve_digests(config: TrainConfig, remember: bool = True) -> TrainConfig:
    """Return the config with the digests of its source and of its initial weights, as far as they can be read."""
    data = resolve_source(config.data, remember)
    config = config if data is config.data else config.model_copy(update={"data": data})
    return with_weights_digest(config, remember)


def short_signature(config: TrainConfig) -> str:
    """Return the digits that end the name of a new run directory of a resolved config."""
    return signature(config)[:SHORT_DIGITS]


def find_earlier_digits(config: TrainConfig, runs: Mapping[str, Path]) -> str | None:
    """Return the digits of an existing run of this resolved config that is named by other digits, or None.

    `runs` maps digits to run directories.
    """
    for other in equivalent_configs(config):
        path = runs.get(digits := short_signature(other))
        by_path = config.data.source is not None and other.data.source_sha256 != config.data.source_sha256
        if path and is_same_run(path, config) and not (by_path and has_other_data(path, config)):
            return digits
    written_otherwise = (digits for digits, path in runs.items() if is_run_of_same_source(path, config))
    return next(written_otherwise, None) if config.data.source is not None else None


def is_run_of_same_source(path: Path, config: TrainConfig) -> bool:
    """Return whether a run is that of this resolved config except for the spelling of the source's path."""
    stored = read_stored(path / "config.json", mtime(path / "config.json"))
    if stored is None:
        return False
    if stored.init_from_sha256 is None:
        config = config.model_copy(update={"init_from_sha256": None})
    same = strip_source(stored) in map(strip_source, (config, *equivalent_configs(config)))
    return same and is_same_run(path, config) and is_same_source(path, stored.data, config.data)


@cache
def read_stored(path: Path, _: float) -> TrainConfig | None:
    """Return the config of a run, cached until its file changes; None if it cannot be read."""
    try:
        return read_config(TrainConfig, path)
    except BadCheckpoint:
        return None


def strip_source(config: TrainConfig) -> str:
    """Return the signature of a config without its source."""
    return signature(
        config.model_copy(update={"data": config.data.model_copy(update={"source": None, "source_sha256": None})})
    )


def is_same_source(path: Path, stored: DataConfig, data: DataConfig) -> bool:
    """Return whether a run is known to be trained on the content of a resolved source.

    A run of the first release recorded only digests of its tokens and of the text they were made from.
    """
    if stored.source_sha256 is not None or stored.source is None:
        return stored.source_sha256 == data.source_sha256
    with suppress(BadData):
        if token_folder(data):
            starts = read_starts(path)
            return bool(starts) and open_dataset(data).fingerprint == starts[-1].get("data")
        return is_made_from_source(folder_by_path(stored.model_copy(update={"dir": data.dir})), data)
    return False


def equivalent_configs(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield the configs of the same run as other commands, or the first release, would have written them."""
    hardware, precision = config.hardware, known_precision(config.hardware)
    left_open = hardware.model_copy(update={"precision": "auto", "fp8": False})
    named = hardware.model_copy(update={"device": "auto", "precision": precision or "auto"})
    by_path = {"data": config.data.model_copy(update={"source_sha256": None}), "init_from_sha256": None}
    yield config.model_copy(update={"hardware": left_open})
    yield config.model_copy(update={"hardware": named})
    yield config.model_copy(update={"hardware": left_open, **by_path})


def keys_of_same_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the keys of paths whose content is the same in both configs by its digest."""
    return {path for path, digest in CONTENTS.items() if before[digest] == now[digest] is not None}


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys with different values, except digests that an earlier version did not record."""
    unknown = {digest for path, digest in CONTENTS.items() if before[digest] is None and before[path] == now[path]}
    return [key for key in now if now[key] != before[key] and key not in unknown]


def known_precision(hardware: HardwareConfig) -> Precision | None:
    """Return the precision if the config determines it; None if it depends on the machine."""
    if hardware.precision != "auto":
        return hardware.precision
    return "fp32" if hardware.device in ("cpu", "mps") else None


def is_same_run(path: Path, config: TrainConfig) -> bool:
    """Return whether a run was trained in the precision of this config, as far as that is known."""
    precision, fp8 = recorded_precision(read_starts(path))
    wanted = known_precision(config.hardware)
    if precision is None:  # it never started
        return (path / "config.json").exists() and config.hardware.precision == "auto" and not config.hardware.fp8
    return wanted is None or (precision, fp8) == (wanted, config.hardware.fp8)


def recorded_precision(starts: list[dict[str, Any]]) -> tuple[str | None, bool]:
    """Return precision (None if not recorded) and fp8 of a run's last start."""
    about = starts[-1].get("arithmetic") if starts else None
    if not isinstance(about, dict) or not isinstance(about.get("precision"), str):
        return None, False
    return about["precision"], about.get("fp8") is True


def has_other_data(path: Path, config: TrainConfig) -> bool:
    """Return whether a run named by its source's path is known to be trained on other content than is there now."""
    with suppress(BadData):
        if token_folder(config.data):
            starts = read_starts(path)
            return bool(starts) and open_dataset(config.data).fingerprint != starts[-1].get("data")
        folder = folder_by_path(config.data)
        return is_prepared(folder) and not (is_up_to_date(folder, config.data) or reuse_path_folder(config.data))
    return False


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts of a run in its provenance.json, oldest first; [] without a readable one."""
    try:
        starts: Any = read_json_bytes(path / "provenance.json")
    except (OSError, ValueError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
