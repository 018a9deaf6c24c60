"""Name and find the folder of a prepared data set by its configuration and the content of its source."""

import glob
import hashlib
import json
import os
import platform
from pathlib import Path

from nanogpt.config import DataConfig
from nanogpt.data.content import compute_source_digest
from nanogpt.data.corpora import find_corpus
from nanogpt.errors import BadData
from nanogpt.files import read_json_object, write_atomic
from nanogpt.schema import signature

FORMAT = 1
SOURCE_FILE = "source.json"  # in a folder that is named by a path: the digest of the source it was made from


def find_dataset_folder(config: DataConfig) -> Path:
    """Return the folder in which a data set is or will be prepared; only equal data with equal choices share one.

    Earlier versions named it by the source's path. Such a folder is used if it was made from the same content, and for
    a config without a digest, such as that of an earlier run, if it exists.
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
    """Return the digest of the values that decide the tokens; `order` and `on_bad_row` don't."""
    return signature(config.model_copy(update={"order": "permutation", "on_bad_row": "stop"}))


def is_prepared(folder: Path) -> bool:
    """Return whether the folder holds a finished data set."""
    return (folder / "meta.json").exists()


def resolve_source(config: DataConfig, remember: bool = True) -> DataConfig:
    """Return the config with `source_sha256` filled in: the digest of the source, or of what was prepared from it.

    The config is unchanged if it has no source, if the source exists but can't be read, or if the source is gone and
    nothing was prepared from it.
    """
    if config.source is None or config.source_sha256 is not None:
        return config
    digest = compute_source_digest(config, remember)
    if digest is None and not source_exists(config.source):
        digest = find_prepared_digest(config)
    return config if digest is None else config.model_copy(update={"source_sha256": digest})


def source_exists(source: str) -> bool:
    """Return whether a path, or a file that matches a glob, exists, readable or not."""
    path = os.path.expanduser(source)
    return os.path.lexists(path) or next(glob.iglob(path, recursive=True), None) is not None


def find_prepared_digest(config: DataConfig) -> str | None:
    """Return the digest of the source that the newest folder prepared from this path records, or None."""
    metas = Path(config.dir).glob(f"{config.name}-*/meta.json")
    for path in sorted(metas, key=lambda path: path.stat().st_mtime, reverse=True):
        source = read_json_object(path).get("source")
        digest = source.get("sha256") if isinstance(source, dict) and source.get("source") == config.source else None
        if isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            candidate = config.model_copy(update={"source_sha256": digest})
            if folder_by_key(candidate).name == path.parent.name:
                return digest
    return None


def is_up_to_date(folder: Path, config: DataConfig) -> bool:
    """Return whether a folder that is named by a path was made from the source as it is, by names, sizes and times."""
    if read_json_object(folder / SOURCE_FILE).get("sha256") == config.source_sha256:
        return True
    try:
        return read_json_object(folder / "meta.json").get("stamp") == find_corpus(config).stamp()
    except BadData:
        return False


def write_source_digest(folder: Path, config: DataConfig) -> None:
    """Record from which content a folder that is named by a path was made. Raises OSError."""
    write_atomic(folder / SOURCE_FILE, json.dumps({"sha256": config.source_sha256}) + "\n")
