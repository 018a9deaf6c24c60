"""The config of a small data set."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanogpt.config import DataConfig

Make = Callable[..., DataConfig]


@pytest.fixture
def data(tmp_path: Path, corpus: Path) -> Make:
    def make(**changes: object) -> DataConfig:
        values = {"name": "t", "corpus": "text", "source": str(corpus), "val_fraction": 0.1, "dir": str(tmp_path / "d")}
        return DataConfig.model_validate(values | {"workers": 1} | changes)  # more are processes: seconds each

    return make
