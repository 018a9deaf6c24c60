"""The coordinate check: with muP no part of the network moves further in a wider model, without it parts do."""

from pathlib import Path

import pytest
from matplotlib.image import imread

from cli.sweep_request import read_configs
from experiments.coordinates import check_coordinates
from nanogpt.config import CoordinatesConfig
from nanogpt.errors import BadInput


def checked(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict[str, list[float]]:
    """Return the exponents of the width by part: [standard, mup]."""
    picture = folder / "check.png"
    words = (f"coordinates.out={picture}", "model.block_size=32", "training.batch_tokens=32", *words)
    (config,) = read_configs("coordinates", CoordinatesConfig, list(words))
    assert check_coordinates(config) == 0
    height, width = imread(picture).shape[:2]
    assert height > 300 and width > 600
    rows = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {name.strip(): [float(one), float(other)] for name, one, other in rows}


def test_adamw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slopes = checked(capsys, tmp_path, "coordinates.widths=[32,64,128]", "parametrization.base_width=32")
    assert set(slopes) == {"attention", "mlp", "logits"}
    for part, (standard, mup) in slopes.items():
        assert standard > 0.5 and mup < 0.3, part


@pytest.mark.slow
def test_muon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Orthogonal updates hold by themselves; the head, which Adam moves, only with muP."""
    words = ("model=tiny_modern", "model.logit_softcap=null", "optimizer=muon", "coordinates.widths=[64,128,192]")
    slopes = checked(capsys, tmp_path, "coordinates.steps=2", *words)
    assert slopes["logits"][0] > 0.5 and all(mup < 0.4 for _, mup in slopes.values()), slopes


def test_widths_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(BadInput, match=r"coordinates.widths=100: must be multiples of 32, the size of a head"):
        read_configs("coordinates", CoordinatesConfig, ["coordinates.widths=[64,100]"])
