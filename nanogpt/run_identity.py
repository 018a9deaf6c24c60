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
from nanogpt.errors import BadCheckpoint, BadData
from nanogpt.files import mtime, read_json_bytes
from nanogpt.schema import read_config, signature
from nanogpt.weights_digest import with_weights_digest

CONTENTS = {"data.source": "data.source_sha256", "init_from": "init_from_sha256"}
"""Keys that name files, each with the key of the digest of what these hold."""
SHORT_DIGITS = 8  # digits of the signature in a folder's name


def resolve_digests(config: TrainConfig, remember: bool = True) -> TrainConfig:
    """Return the config with the digests of its source and of its first weights, where they can be known."""
    data = resolve_source(config.data, remember)
    config = config if data is config.data else config.model_copy(update={"data": data})
    return with_weights_digest(config, remember)


def short_signature(config: TrainConfig) -> str:
    """Return what ends the name of a new run directory of a resolved config."""
    return signature(config)[:SHORT_DIGITS]


def find_earlier_digits(config: TrainConfig, runs: Mapping[str, Path]) -> str | None:
    """Return the digits of the run that is this resolved config's, though its name has other digits than
    `short_signature`; None where there is none. `runs` are run directories by their digits.
    """
    for other in equivalent_configs(config):
        path = runs.get(digits := short_signature(other))
        by_path = config.data.source is not None and other.data.source_sha256 != config.data.source_sha256
        if path and is_same_run(path, config) and not (by_path and has_other_data(path, config)):
            return digits
    written_otherwise = (digits for digits, path in runs.items() if is_run_of_same_source(path, config))
    return next(written_otherwise, None) if config.data.source is not None else None


def is_run_of_same_source(path: Path, config: TrainConfig) -> bool:
    """Whether a run directory is this resolved config's but for how the source's path is written."""
    stored = read_stored(path / "config.json", mtime(path / "config.json"))
    if stored is None:
        return False
    if stored.init_from_sha256 is None:
        config = config.model_copy(update={"init_from_sha256": None})
    same = strip_source(stored) in map(strip_source, (config, *equivalent_configs(config)))
    return same and is_same_run(path, config) and is_same_source(path, stored.data, config.data)


@cache
def read_stored(path: Path, _: float) -> TrainConfig | None:
    """Return the config of a run, read once while its file stays as it is; None where it can't be read."""
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
    """Whether a run is known to be trained on what a resolved source holds. A run of the first release noted the
    digest of its tokens, and that of the text beside them.
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
    """Yield this config as other commands, or the first release, would have written it."""
    hardware, precision = config.hardware, known_precision(config.hardware)
    left_open = hardware.model_copy(update={"precision": "auto", "fp8": False})
    named = hardware.model_copy(update={"device": "auto", "precision": precision or "auto"})
    by_path = {"data": config.data.model_copy(update={"source_sha256": None}), "init_from_sha256": None}
    yield config.model_copy(update={"hardware": left_open})
    yield config.model_copy(update={"hardware": named})
    yield config.model_copy(update={"hardware": left_open, **by_path})


def keys_of_same_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Return the keys whose paths are written in two ways but hold the same, by digests that both configs have."""
    return {path for path, digest in CONTENTS.items() if before[digest] == now[digest] is not None}


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys with another value; a digest that an earlier version didn't write is no difference."""
    unknown = {digest for path, digest in CONTENTS.items() if before[digest] is None and before[path] == now[path]}
    return [key for key in now if now[key] != before[key] and key not in unknown]


def known_precision(hardware: HardwareConfig) -> Precision | None:
    """Return the precision that the config alone decides; None where it depends on the machine."""
    if hardware.precision != "auto":
        return hardware.precision
    return "fp32" if hardware.device in ("cpu", "mps") else None


def is_same_run(path: Path, config: TrainConfig) -> bool:
    """Whether the run in a directory was computed in the precision that this config asks for, as far as it says."""
    precision, fp8 = recorded_precision(read_starts(path))
    wanted = known_precision(config.hardware)
    if precision is None:  # it never began
        return (path / "config.json").exists() and config.hardware.precision == "auto" and not config.hardware.fp8
    return wanted is None or (precision, fp8) == (wanted, config.hardware.fp8)


def recorded_precision(starts: list[dict[str, Any]]) -> tuple[str | None, bool]:
    """Return precision and fp8 of a run's last start, None where nobody noted it."""
    about = starts[-1].get("arithmetic") if starts else None
    if not isinstance(about, dict) or not isinstance(about.get("precision"), str):
        return None, False
    return about["precision"], about.get("fp8") is True


def has_other_data(path: Path, config: TrainConfig) -> bool:
    """Whether a run that is named by its source's path is known to be trained on something else than is there now."""
    with suppress(BadData):
        if token_folder(config.data):
            starts = read_starts(path)
            return bool(starts) and open_dataset(config.data).fingerprint != starts[-1].get("data")
        folder = folder_by_path(config.data)
        return is_prepared(folder) and not (is_up_to_date(folder, config.data) or reuse_path_folder(config.data))
    return False


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return every start of a run, oldest first, as its provenance.json has it."""
    try:
        starts: Any = read_json_bytes(path / "provenance.json")
    except (OSError, ValueError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
