"""Config of a small data set, and the text of its splits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nanogpt import tokenizer as tokenizers
from nanogpt.config import DataConfig
from nanogpt.data.dataset import Dataset, Split

Make = Callable[..., DataConfig]


@pytest.fixture
def data(tmp_path: Path, corpus: Path) -> Make:
    def make(**changes: object) -> DataConfig:
        values = {"name": "t", "corpus": "text", "source": str(corpus), "val_fraction": 0.1, "dir": str(tmp_path / "d")}
        return DataConfig.model_validate(values | {"workers": 1} | changes)  # each further process takes seconds

    return make


def text_of(dataset: Dataset, split: Split) -> str:
    ids = np.concatenate([split.read(i, 0, n) for i, n in enumerate(split.shard_tokens)])
    return tokenizers.decode(dataset.tokenizer, ids)
