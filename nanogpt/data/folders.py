"""Find the folder of a prepared data set: named by its choices and by the content of its source, not by a path."""

import glob
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from nanogpt.config import DataConfig
from nanogpt.data import corpora
from nanogpt.data.content import with_source_digest
from nanogpt.errors import BadData
from nanogpt.files import read_json_bytes, write_atomic
from nanogpt.schema import signature

FORMAT = 1
SOURCE_FILE = "source.json"  # in a folder that is named by a path: the digest of what it was made of


def find_dataset_folder(config: DataConfig) -> Path:
    """Return where a data set is or will be prepared: equal choices of equal content share a folder, others never do.

    A folder that was named by the source's path, as once all were, is used where it was made of this content; of a
    config without a digest, such as that of a run from then, where there is one.
    """
    by_path = folder_by_path(config)
    if config.source_sha256 is None and is_prepared(by_path):
        return by_path
    config = resolve_source(config)
    by_content = folder_by_key(config)
    if by_content == by_path or is_prepared(by_content) or not is_prepared(by_path):
        return by_content
    return by_path if is_up_to_date(by_path, config) else by_content


def folder_by_path(config: DataConfig) -> Path:
    """Return the folder that is named by the source's path."""
    return folder_by_key(config.model_copy(update={"source_sha256": None}))


def folder_by_key(config: DataConfig) -> Path:
    """Return the folder for exactly these values."""
    choices = [FORMAT, preparation_signature(config)]
    if config.corpus == "pystdlib" and config.source is None:
        choices.append(platform.python_version())
    key = hashlib.sha256(json.dumps(choices).encode()).hexdigest()
    return Path(config.dir) / f"{config.name}-{key[:8]}"


def preparation_signature(config: DataConfig) -> str:
    """Return what decides the tokens, hashed. Rows are read alike whatever is done with bad ones."""
    return signature(config.model_copy(update={"order": "permutation", "on_bad_row": "stop"}))


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a finished data set."""
    return (folder / "meta.json").exists()


def source_exists(source: str) -> bool:
    """Whether a path, or a file that matches a glob, exists, readable or not."""
    path = os.path.expanduser(source)
    return os.path.lexists(path) or next(glob.iglob(path, recursive=True), None) is not None


def resolve_source(config: DataConfig, remember: bool = True) -> DataConfig:
    """Return the config with the digest of its source: of what is there, else of what was prepared from it.

    Unchanged where there is no source, where it is there but can't be read, or where nothing was prepared from it.
    """
    found = with_source_digest(config, remember)
    if found.source is None or found.source_sha256 is not None or source_exists(found.source):
        return found
    metas = Path(config.dir).glob(f"{config.name}-*/meta.json")
    for path in sorted(metas, key=lambda path: path.stat().st_mtime, reverse=True):
        about = read_json_object(path).get("source")
        if isinstance(about, dict) and about.get("source") == config.source and is_sha256(about.get("sha256")):
            candidate = config.model_copy(update={"source_sha256": about["sha256"]})
            if folder_by_key(candidate).name == path.parent.name:
                return candidate
    return config


def is_up_to_date(folder: Path, config: DataConfig) -> bool:
    """Whether a folder that is named by a path was made of the source as it is now, as far as names and times tell."""
    if read_json_object(folder / SOURCE_FILE).get("sha256") == config.source_sha256:
        return True
    try:
        stamp = corpora.find_corpus(config, cache=Path(config.dir) / "downloads").stamp()
    except BadData:
        return False
    return read_json_object(folder / "meta.json").get("stamp") == stamp


def write_source_digest(folder: Path, config: DataConfig) -> None:
    """Note of which content a folder that is named by a path was made. Raises OSError."""
    write_atomic(folder / SOURCE_FILE, json.dumps({"sha256": config.source_sha256}) + "\n")


def is_sha256(value: object) -> bool:
    """Whether a value that was read from a file can be a sha256."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is none that can be read."""
    try:
        value: Any = read_json_bytes(path)
    except (OSError, ValueError):
        return {}
    return {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}
