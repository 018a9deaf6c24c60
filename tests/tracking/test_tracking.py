"""Rows that survive, pictures that are pictures, lines a person can read."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from nanogpt.formatting import format_count, format_duration, format_table
from nanogpt.metrics_file import RowLog, read_rows
from nanogpt.progress import TokenizeProgress, TrainProgress
from nanogpt.tracking.plots import LIGHT, draw_loss, loss_limits, plot_loss, smooth


def test_rewinding_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    before = log.path.read_bytes()
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert len(read_rows(log.path)) == 5
    log.rewind(5)
    assert log.path.read_bytes() == before
    log.rewind(3)
    assert [row["step"] for row in read_rows(log.path)] == [1, 2, 3]
    assert log.path.read_bytes() == b"".join(line + b"\n" for line in before.splitlines()[:3])


def test_a_row_is_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RowLog(tmp_path / "m.jsonl").append({"step": 1, "loss": float("nan")})


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_the_curve_is_drawn_from_any_number_of_rows(tmp_path: Path, count: int) -> None:
    rows = [{"step": i, "loss": 4 / (i + 1)} for i in range(count)]
    rows += [{"step": i, "val_loss": 5 / (i + 1)} for i in range(0, count, 100)]
    plot_loss(rows, tmp_path / "plots" / "loss.png", "title")
    content = (tmp_path / "plots" / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000


def test_the_running_mean() -> None:
    assert smooth((3.0, 1.0, 2.0)) == [3.0, 1.0, 2.0]  # few points are shown as they are
    constant = smooth(tuple([2.0] * 1000))
    assert all(abs(value - 2.0) < 1e-9 for value in constant)
    noisy = smooth(tuple(float(i % 2) for i in range(1000)))
    assert max(noisy[100:]) - min(noisy[100:]) < 0.2


def test_limits_forgive_a_spike() -> None:
    steps = np.arange(1001.0)
    low, high = loss_limits([(steps, np.array([3.0 - i / 1000 for i in range(1000)] + [500.0]))])
    assert low < 2.0 and 3.0 < high < 4.0
    assert loss_limits([]) == (0.0, 1.0)


def test_the_first_fall_leaves_room_for_the_rest() -> None:
    """From 10.8 to 3: what comes after a tenth of the steps has most of the picture, and the start is named."""
    steps = np.arange(0.0, 2001.0, 10)
    losses = 3 + 7.8 * np.exp(-steps / 60) + 0.3 * np.exp(-steps / 600)
    axes = Figure().add_subplot()
    draw_loss(axes, LIGHT, (steps, losses), (steps[::20], losses[::20]))
    low, high = axes.get_ylim()
    late = losses[steps >= 200]
    assert low < late.min() and late.max() < high and np.ptp(late) > 0.6 * (high - low)
    assert [text.get_text() for text in axes.texts] == ["↑ from 11.1"]


def test_numbers_for_people() -> None:
    assert [format_duration(s) for s in (0.4, 59, 61, 3661, 90_000)] == ["0s", "59s", "1m01s", "1h01m", "1d01h"]
    assert [format_count(n) for n in (950, 12_345, 124e6, 9.04e9)] == ["950", "12.3k", "124M", "9.04B"]
    assert format_count(9.04e9, "G") == "9.04G"


def test_a_pipe_gets_one_plain_line_per_interval(capsys: pytest.CaptureFixture[str]) -> None:
    steps = TrainProgress(0, 10)
    steps.show(5, {"loss": "1.2345", "ETA": "3s"})
    steps.close()
    assert capsys.readouterr().out == "step 5/10  loss 1.2345  ETA 3s\n"


def test_tables_and_meters(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = format_table("title", ("a", "b"), [("x", "1"), ("y", "2")])
    assert "title" in drawn and "x" in drawn and "\x1b" not in drawn
    with TokenizeProgress("tokenising", 100, 2) as meter:
        meter.add(50, 25)
        meter.add_parts(1)
        meter.show(force=True)
    assert "tokenising: part 1/2  25 tokens" in capsys.readouterr().err
