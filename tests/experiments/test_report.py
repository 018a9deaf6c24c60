"""The report of a study: what is in it, what it says of half a study, and that nothing in a run directory breaks it."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from experiments.compare import compare
from experiments.document import escaped_markdown
from experiments.list_runs import list_runs
from experiments.report import PICTURES, report
from nanogpt import files
from nanogpt.config import Against, CompareConfig, ListConfig, ReportConfig
from nanogpt.errors import BadEnvironment, BadInput
from tests.experiments.fake_runs import BATCH, seeds, write_run
from tests.experiments.page import EVIL, reported

ROOT = Path(__file__).parents[2]


def test_a_grid_with_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {(1e-3, 0.0): [2.0, 2.1, 2.3], (1e-3, 0.2): [2.4, 2.5, 2.4], (1e-2, 0.0): [2.2, 2.2, 2.5]}
    for (lr, dropout), finals in losses.items():
        seeds(tmp_path, finals, **{"optimizer.lr": lr, "model.dropout": dropout})
    page = reported(tmp_path)
    assert page.column("#") == ["1", "2", "3"] and page.column("seeds") == ["3"] * 3
    assert list(zip(page.column("lr"), page.column("dropout"), strict=True)) == [
        ("0.001", "0"),
        ("0.01", "0"),
        ("0.001", "0.2"),
    ]
    for cell, finals in zip(page.column("final val"), (losses[1e-3, 0.0], losses[1e-2, 0.0]), strict=False):
        half = stats.sem(finals) * stats.t.ppf(0.975, 2)
        assert cell == f"{sum(finals) / 3:.4f} ± {half:.4f}"
    assert page.column("steps") == ["20"] * 3 and page.column("tokens") == ["2.56k"] * 3
    assert page.column("tok/s") == ["1k"] * 3 and page.column("time") == [f"{20 * BATCH / 1000:.1f}s"] * 3
    assert page.column("CPU-hours") == [f"{3 * 20 * BATCH / 1000 / 3600:.3g}"] * 3
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    assert written == {"curves.png", "sensitivity.png", "heatmap.png"} and not list(tmp_path.glob(".*"))
    text = (tmp_path / "report.md").read_text()
    assert "](plots/heatmap.png)" in text and "nanogpt train " in text and "| lr |" in text
    assert "final val" in capsys.readouterr().out


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    seeds(tmp_path, [2.0, 2.1])
    page = reported(tmp_path)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), attributes
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "prefers-color-scheme: dark" in (tmp_path / "report.html").read_text()


def test_whatever_runs_say_is_text(tmp_path: Path) -> None:
    write_run(tmp_path / "a&<b>", [5.0, 3.0], name="fine", **{"optimizer.lr": 1e-2, "data.source": EVIL})
    path = write_run(tmp_path / "a&<b>", [5.0], name="evil", state="failed", why=EVIL, **{"data.source": f"{EVIL}2"})
    (path / "provenance.json").write_text(json.dumps([{"git": {"commit": EVIL, "changed": [EVIL]}, "device": EVIL}]))
    page = reported(tmp_path / "a&<b>")
    assert [tag for tag, _ in page.tags].count("script") == 1 and not [a for _, a in page.tags if "onerror" in a]
    text = (tmp_path / "a&<b>" / "report.html").read_text()
    assert "\x1b" not in text and "&lt;script&gt;alert(1)" in text
    table = [line for line in (tmp_path / "a&<b>" / "report.md").read_text().splitlines() if line.startswith("|")]
    assert not [line for line in table if "<script" in line.replace("\\<", "")]


def test_brackets_are_no_markup_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, text in enumerate(("[/x]", "[red]a[/red]", ":bug:")):
        write_run(tmp_path, [5.0, 2.0 + i], name=f"[/{i}]", **{"data.source": text})
    write_run(tmp_path, [5.0], name="bad", state="failed", why="[/foo] gone", **{"data.source": "no"})
    reported(tmp_path)
    assert list_runs(ListConfig(targets=(str(tmp_path),))) == 0
    told = capsys.readouterr().out
    for text in ("[/x]", "[red]a[/red]", ":bug:", "[/foo] gone", "/[/0]"):
        assert text in told


@pytest.mark.parametrize(
    ("text", "shown"),
    [("&lt;b&gt;", "\\&lt;b\\&gt;"), ("- a", "\\- a"), ("1. a", "1\\. a"), ("1.5 s", "1.5 s"), ("-", "-")],
)
def test_markdown_shows_a_text_as_it_is(text: str, shown: str) -> None:
    assert escaped_markdown(text) == shown


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_place_that_can_t_be_written_leaves_the_answer_and_no_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    seeds(tmp_path, [2.0, 2.1])

    def refuse(path: Path, content: object) -> None:
        path.touch()
        raise error

    monkeypatch.setattr(files, "write_file", refuse)
    with pytest.raises(BadEnvironment, match=f"can't be written: {error.strerror}; out=FOLDER"):
        reported(tmp_path)
    assert "2.0500 ± " in capsys.readouterr().out and not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.parametrize("command", [lambda at: report(ReportConfig(**at)), lambda at: compare(CompareConfig(**at))])
def test_a_file_is_no_folder_for_pages(tmp_path: Path, command: Callable[[dict[str, Any]], int]) -> None:
    write_run(tmp_path / "runs", [5.0, 3.0])
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BadInput, match="out: not a folder"):
        command({"targets": (str(tmp_path / "runs"),), "out": str(tmp_path / "out")})
    assert (tmp_path / "out").read_text() == "mine"


def test_the_best_is_told_from_the_next_only_if_seeds_do(tmp_path: Path) -> None:
    losses = {1e-3: [2.0, 2.3, 2.1], 1e-2: [2.1, 2.2, 2.5], 1e-1: [3.0, 3.1, 3.2]}
    for lr, finals in losses.items():
        seeds(tmp_path, finals, **{"optimizer.lr": lr})
    reported(tmp_path)
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert "It may owe its place to luck: lr=0.01 (not told apart (" in text and "lr=0.1 (" not in text
    interval = stats.tukey_hsd(*losses.values()).confidence_interval(0.95)
    for i, gap in ((1, 0.1333), (2, 0.9667)):
        assert f"+{gap:.4f} ± {(interval.high[i, 0] - interval.low[i, 0]) / 2:.4f}" in text
    found = re.search(r"as the best of these, (\d\.\d{4}) is to be expected", text)
    assert found and 2.1333 < float(found[1]) < 2.2667  # above its mean, below that of the second
    assert "optimizer.lr=0.001 is the lowest value tried: the best may lie beyond." in text


@pytest.mark.parametrize(
    ("key", "losses", "told"),
    [
        ("optimizer.lr", {1e-3: 2.5, 1e-2: 2.0, 1e-1: 3.0}, False),
        ("optimizer.lr", {1e-3: 2.5, 1e-2: 2.2, 1e-1: 2.0}, True),
        ("model.dropout", {0.0: 2.0, 0.1: 2.1}, False),  # nothing lies below
        ("model.dropout", {0.0: 2.2, 0.1: 2.1}, True),
        ("training.batch_tokens", {64: 2.2, 128: 2.1}, False),
    ],
)
def test_the_edge_of_what_was_tried(tmp_path: Path, key: str, losses: dict[float, float], told: bool) -> None:
    for value, final in losses.items():
        write_run(tmp_path / "runs", [5.0, final], **{key: value})
    reported(tmp_path)
    assert ("the best may lie beyond" in (tmp_path / "report.md").read_text()) == told


def test_a_diverged_seed_is_told_beside_the_mean(tmp_path: Path) -> None:
    for i, state in enumerate(("finished", "diverged")):
        keys = {"optimizer.lr": 1.0, "training.seed": i}
        write_run(tmp_path, [5.0, 2.0], name=f"wild{i}", state=state, why="Diverged: inf", **keys)  # type: ignore[arg-type]
    seeds(tmp_path, [2.5, 2.6], **{"optimizer.lr": 1e-3})
    page = reported(tmp_path)
    assert page.column("lr, steps") == ["0.001, 20", "1, 10"] and page.column("seeds") == ["2", "1 of 2"]
    assert page.column("status") == ["finished", "1 finished, 1 diverged"]
    assert page.column("why") == ["-", "Diverged: inf"]
    assert "a diverged seed come last" in (tmp_path / "report.md").read_text()


def test_half_a_study_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, [5.0, 3.0], **{"optimizer.lr": 1e-3})
    write_run(tmp_path, [5.0, 2.0], name="b", state="running", **{"optimizer.lr": 3e-3, "training.steps": 40})
    write_run(tmp_path, [5.0], name="c", state="diverged", why="Diverged: step 6: loss inf", **{"optimizer.lr": 1.0})
    write_run(tmp_path, [5.0, 2.0], name="d", state="failed", why="BadData: gone", **{"optimizer.lr": 2.0})
    page = reported(tmp_path)
    assert page.column("#") == ["1", "", "", ""] and page.column("lr")[0] == "0.001"
    assert page.column("final val")[0] == "3.0000" and "(2.0000 at step 10)" in page.column("final val")
    told = dict(zip(page.column("status"), page.column("why"), strict=True))
    assert told["diverged"] == "Diverged: step 6: loss inf" and told["finished"] == "-"
    assert sorted(page.column("why", table=1)) == ["-", "BadData: gone", "Diverged: step 6: loss inf"]
    text = (tmp_path / "report.md").read_text()
    assert "The study isn't finished: 1 diverged, 1 failed, 1 running" in text.replace("\\", "")


def test_nothing_finished_and_nothing_logged(tmp_path: Path) -> None:
    path = write_run(tmp_path, [5.0], state="running", **{"training.steps": 40})
    (path / "metrics.jsonl").unlink()
    page = reported(tmp_path)
    assert page.column("#") == [""] and page.column("final val") == ["-"]
    text = (tmp_path / "report.md").read_text()
    assert "No run is finished yet" in text and "Nothing to draw" in text and not list(tmp_path.glob("plots/*"))


def test_damage_is_told_and_not_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, [5.0, 3.0])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "tok')
    bad = write_run(tmp_path, [5.0, 3.0], name="bad")
    (bad / "config.json").write_text("null")
    reported(tmp_path)
    text, told = (tmp_path / "report.md").read_text().replace("\\", ""), capsys.readouterr().out
    for expected in ("metrics.jsonl: left out what can't be read: lines: 1", f"{bad}: left out"):
        assert expected in text and expected in told


def test_pictures_of_an_earlier_report_go(tmp_path: Path) -> None:
    write_run(tmp_path, [5.0, 3.0], **{"optimizer.lr": 1e-3})
    write_run(tmp_path, [5.0, 2.0], name="b", **{"optimizer.lr": 3e-3})
    reported(tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"curves.png", "sensitivity.png"}
    (tmp_path / "plots" / "mine.png").write_bytes(b"")
    write_run(tmp_path, [5.0, 2.5], name="c", **{"optimizer.lr": 3e-3, "model.dropout": 0.3})
    reported(tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "curves.png",
        "sensitivity.png",
        "heatmap.png",
        "mine.png",
    }
    assert {"curves", "heatmap", "sensitivity", "parallel"} == set(PICTURES)


@pytest.mark.parametrize("x", ["flops", "time"])
def test_every_axis_of_the_curves(tmp_path: Path, x: Against) -> None:
    seeds(tmp_path, [2.0, 2.1], **{"optimizer.lr": 1e-3})
    write_run(tmp_path, [5.0, 300.0], name="b", state="diverged", **{"optimizer.lr": 1.0})
    page = reported(tmp_path, x=x)
    words = {"flops": "training FLOPs", "time": "time in training steps"}[x]
    assert f"loss against {words}" in [a["alt"] for tag, a in page.tags if tag == "img"]


def test_many_settings_of_many_keys(tmp_path: Path) -> None:
    """60 of three keys, one of them words with a dollar in them, some without a loss."""
    for i in range(60):
        keys = {"optimizer.lr": 1e-4 * 1.2**i, "model.dropout": i % 3 / 10, "data.source": f"$x_{{{i % 2}}}$ 日本"}
        start = {"data": f"d{i % 2}", "measurement": {"windows": "the same", "text": "the same"}}
        state = "failed" if i % 20 == 7 else "finished"
        write_run(tmp_path, [5.0, 2.0 + i / 50], name=f"p{i}", state=state, starts=[start], **keys)
    page = reported(tmp_path)
    assert len(page.column("#")) == 60 and page.column("#").count("") == 3
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"curves.png", "parallel.png"}


def test_the_source_of_the_data_is_among_what_all_have_in_common(tmp_path: Path) -> None:
    write_run(tmp_path, [5.0, 3.0], **{"data.source": "mine.txt"})
    reported(tmp_path)
    assert "data.source=mine.txt" in (tmp_path / "report.md").read_text()


def test_where_the_report_goes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / folder, [5.0, 3.0], name=folder) for folder in ("one", "two")]
    several = tuple(map(str, runs))
    with pytest.raises(BadInput, match="out=null: these runs are in different folders"):
        report(ReportConfig(targets=several, runs_dir=str(tmp_path / "elsewhere")))
    assert report(ReportConfig(targets=several, out=str(tmp_path / "new" / "place"))) == 0
    assert (tmp_path / "new" / "place" / "report.html").exists() and not (tmp_path / "report.md").exists()
    assert report(ReportConfig(targets=(str(runs[0]),))) == 0 and (runs[0] / "report.md").exists()
    with pytest.raises(BadInput, match="no such study or run"):
        report(ReportConfig(targets=("nope",), runs_dir=str(tmp_path)))


WORDS: list[tuple[list[str], list[str]]] = [
    (["list"], []),
    (["watch", "study"], []),
    (["gc"], []),
    (["report", "study"], ["jinja2", "matplotlib", "scipy"]),
    (["compare", "study"], ["jinja2", "matplotlib", "scipy"]),
]


def test_no_command_needs_torch(tmp_path: Path) -> None:
    """One process for each would take ten seconds; the light ones come first, so that they show what they load."""
    for lr in (1e-3, 1e-2):
        seeds(tmp_path / "runs" / "study", [2.0, 2.1], **{"optimizer.lr": lr})
    code = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
heavy = {{'torch', 'scipy', 'matplotlib', 'jinja2'}}
for words in {[words for words, _ in WORDS]!r}:
    sys.argv = ['experiments', *words]
    try:
        runpy.run_module('experiments', run_name='__main__')
    except SystemExit as end:
        print('LOADED', (end.code, sorted(heavy & set(sys.modules))), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    found = [ast.literal_eval(line) for line in re.findall("LOADED (.*)", done.stderr)]
    assert found == [(0, loaded) for _, loaded in WORDS], done.stderr
