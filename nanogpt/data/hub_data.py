"""Stream data sets of the Hugging Face hub, file by file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanogpt.config import DataConfig
from nanogpt.data.local_files import join_names
from nanogpt.data.rows import TextRow, make_row
from nanogpt.data.splits import WORDS
from nanogpt.errors import BadData, BadEnvironment, one_line
from nanogpt.hf_hub import check_hub_reachable


def read_hub_rows(config: DataConfig, split: str, number: int) -> Iterator[TextRow]:
    """Yield the rows of one file of a split of a hub data set."""
    stream = open_stream(str(config.hub), split=split, name=config.hub_config)
    count = int(stream.num_shards)
    if count > 1:
        stream = stream.shard(num_shards=count, index=number)
    for index, values in enumerate(iterate_stream(f"{config.hub} {split} {number}", stream)):
        yield make_row(index, f"row {index}", values, config.text_column)


def find_hub_splits(config: DataConfig) -> tuple[tuple[tuple[str, int], ...], list[str]]:
    """Return the splits of a hub data set that are used, with their numbers of files, and the names of the others.

    `train` is used, and with data.split=auto the splits named for validation. Raises BadData, BadEnvironment.
    """
    streams = open_stream(str(config.hub), split=None, name=config.hub_config)
    names = [str(name) for name in streams]
    if "train" not in names:
        raise BadData(f"data.hub={one_line(config.hub)}: has no train split; its splits: {join_names(names)}")
    used = ["train", *(name for name in names if config.split == "auto" and WORDS.get(name) == "val")]
    counts = tuple((name, max(1, int(streams[name].num_shards))) for name in used)
    return counts, [name for name in names if name not in used]


def iterate_stream(name: str, stream: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a stream. Raises BadEnvironment if the network fails, BadData if the content can't be read."""
    try:
        yield from stream
    except OSError as error:
        raise BadEnvironment(f"{name}: {one_line(error, 200)}; the same command continues") from None
    except Exception as error:  # whatever the reader raises for a broken line or another format
        raise BadData(f"{name}: can't be read: {type(error).__name__}: {one_line(error, 200)}") from None


def open_stream(
    path: str,
    split: str | None = "train",
    remedy: str = "use local files with data.source='…/*.parquet'",
    **arguments: Any,
) -> Any:
    """Return a streaming `datasets` data set; for split=None a mapping of all its splits.

    Raises BadEnvironment if the library is missing or the hub can't be reached, BadData for unreadable `data_files`.
    """
    try:
        import datasets
    except ImportError:
        raise BadEnvironment("this data set needs the 'datasets' library: pip install 'datasets>=4'") from None
    try:
        if "data_files" not in arguments and not Path(path).exists():
            check_hub_reachable()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are reported by the exceptions below
        return datasets.load_dataset(path, split=split, streaming=True, **arguments)
    except Exception as error:  # of the hub's client, requests or the system
        why = one_line(f"{type(error).__name__}: {error}", 200)
        if "data_files" in arguments:
            raise BadData(f"{one_line(arguments['data_files'])}: can't be read: {why}") from None
        raise BadEnvironment(f"{one_line(path)}: {why}; {remedy}") from None
