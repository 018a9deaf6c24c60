"""Files of a report for papers and other programs: vector plots, LaTeX, CSV and JSON."""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from experiments.document import Cell, TableBlock
from experiments.latex import escape_latex, latex_table
from experiments.report import report
from nanogpt.config import ReportConfig
from tests.experiments.fake_runs import seeds, write_grid, write_run
from tests.experiments.page import EVIL, reported

ROOT = Path(__file__).parents[2]
FINALS = {(1e-3, 0.0): [2.0, 2.1, 2.3], (1e-3, 0.2): [2.4, 2.5, 2.4], (1e-2, 0.0): [2.2, 2.2, 2.5]}
PLOTS = ("curves", "sensitivity", "heatmap")


def write_study(folder: Path) -> None:
    for (lr, dropout), finals in FINALS.items():
        seeds(folder, finals, **{"optimizer.lr": lr, "model.dropout": dropout})
    keys = {"optimizer.lr": 1e-2, "model.dropout": 0.2}
    write_run(folder, [5.0, 4.0], name="hot", state="diverged", why="Diverged: inf", **keys, **{"training.steps": 20})


def written(folder: Path, **changes: object) -> set[str]:
    before = set(folder.rglob("*"))
    assert report(ReportConfig(targets=(str(folder),), **changes)) == 0  # type: ignore[arg-type]
    return {str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before if path.is_file()}


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_each_format_has_its_files(tmp_path: Path) -> None:
    write_study(tmp_path)
    for kind in ("pdf", "svg", "png"):
        assert written(tmp_path, format=(kind,)) == {f"plots/{name}.{kind}" for name in PLOTS}
    assert written(tmp_path, format=("csv",)) == {"ranking.csv", "lines.csv"}
    assert written(tmp_path, format=("tex",)) == {"ranking.tex", "lines.tex"}
    assert written(tmp_path, format=("json",)) == {"report.json"} and written(tmp_path) == {"report.md", "report.html"}
    for path in tmp_path.glob("plots/*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF") and b"/FontFile2" in content and b"/Type3" not in content
    for path in tmp_path.glob("plots/*.svg"):
        shown = " ".join(ElementTree.parse(path).getroot().itertext())
        assert "nats per token" in shown, "text stays text"
    assert not written(tmp_path, plots=("heatmap",), format=("pdf",)) and not (tmp_path / "plots/curves.pdf").exists()
    assert written(tmp_path, plots=(), format=("html",), out=str(tmp_path / "bare")) == {"bare/report.html"}
    assert "<img" not in (tmp_path / "bare" / "report.html").read_text()


def test_the_same_runs_give_the_same_plots(tmp_path: Path) -> None:
    write_run(tmp_path / "study", [5.0, 3.0, 2.5])
    for out in ("first", "second"):
        written(tmp_path / "study", format=("pdf", "svg"), out=str(tmp_path / out))
    for kind in ("pdf", "svg"):
        first, second = ((tmp_path / out / "plots" / f"curves.{kind}").read_bytes() for out in ("first", "second"))
        assert first == second and b"2026-" not in first


def test_a_plot_that_the_keys_do_not_allow_is_named(tmp_path: Path) -> None:
    seeds(tmp_path, [2.0, 2.1], **{"optimizer.lr": 1e-3})
    seeds(tmp_path, [2.2, 2.1], **{"optimizer.lr": 1e-2})
    reported(tmp_path, plots=("heatmap",))
    text = (tmp_path / "report.md").read_text()
    assert "Not drawn, because too few or too many keys were varied: heatmap." in text and "Loss curves" not in text


def test_tables_and_json_have_all_digits(tmp_path: Path) -> None:
    """They are scipy's numbers, unrounded; what isn't known is empty or null; all keys are documented."""
    write_study(tmp_path)
    written(tmp_path, format=("csv", "json"))
    rows = read_csv(tmp_path / "ranking.csv")
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    (ranking,) = content["rankings"]
    for row, setting, rank in zip(rows, ranking["settings"], ("1", "2", "3", ""), strict=True):
        assert row["rank"] == rank and {key: row[key] for key in row if key in setting} == {
            key: "" if value is None else str(value).lower() for key, value in setting.items() if key != "runs"
        }
        finals = FINALS.get((float(row["optimizer.lr"]), float(row["model.dropout"])))
        if finals is None:
            assert (
                row["diverged"] == "true" and row["val_loss"] == row["val_loss_ci95"] == "" and row["finished"] == "0"
            )
            continue
        assert float(row["val_loss"]) == pytest.approx(sum(finals) / 3, rel=1e-14)
        half = stats.sem(finals) * stats.t.ppf(0.975, 2)
        assert float(row["val_loss_ci95"]) == pytest.approx(half, rel=1e-12)
    lines = read_csv(tmp_path / "lines.csv")
    shown = [tuple(line[key] for key in ("model.dropout", "best", "highest_stable", "diverged_from")) for line in lines]
    assert shown == [("0.0", "0.001", "0.01", ""), ("0.2", "0.001", "0.001", "0.01")]
    run = next(run for run in content["runs"] if run["state"] == "diverged")
    assert run["eval"]["val_loss"] == [5.0, 4.0] and run["config"]["model"]["dropout"] == 0.2
    assert run["train"]["step"] == [5, 10] and run["why"] == "Diverged: inf"
    documented = (ROOT / "docs" / "analysis.md").read_text()
    for key in {*rows[0], *lines[0], *content, *ranking, *run, *content["varied"][0]}:
        assert "." in key or f"`{key}`" in documented, key


def test_lists_and_words_in_tables(tmp_path: Path) -> None:
    texts = {(0.9, 0.95): 'a,"b"\n\x1b[31m', (0.9, 0.99): "=1+1"}
    for i, (betas, text) in enumerate(texts.items()):
        start = {"data": f"d{i}", "measurement": {"windows": "the same", "text": "the same"}}
        keys = {"optimizer.betas": betas, "data.source": text}
        write_run(tmp_path, [5.0, 3.0 - i], name=f"{i}", starts=[start], **keys)  # type: ignore[arg-type]
    written(tmp_path, format=("csv",))
    rows = {row["optimizer.betas"]: row["data.source"] for row in read_csv(tmp_path / "ranking.csv")}
    assert rows == {"[0.9,0.95]": 'a,"b"\\n\\x1b[31m', "[0.9,0.99]": "=1+1"}


HOSTILE = [
    EVIL,
    r"\input{/etc/passwd}",
    r"100 % of $x_{1}$ & #2 ~ ^",
    "[x]",
    "*",
    "a--b ?`c` ''d'' <<e>> \"f\" |",
    "-1e-3",
    "}{",
]


def unescape(text: str) -> str:
    """Return what LaTeX prints, by its own rules: groups vanish, commands give their character."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
    names |= {"textbar": "|", "textquotedbl": '"', "ldots": "…"}
    printed, depth, i = "", 0, 0
    while i < len(text):
        match = re.match(r"\\([a-zA-Z]+)\{\}|\\([{}$&#_%])|\$(\\pm|-)\$", text[i:])
        if match:
            printed += names[match[1]] if match[1] else match[2] or {"\\pm": "±", "-": "-"}[match[3]]
            i += len(match[0])
            continue
        assert text[i] not in "\\$&#_%~^", f"{text[i]} is special: {text}"
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        assert depth >= 0
        printed += "" if text[i] in "{}" else text[i]
        i += 1
    assert depth == 0
    return printed


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_prints_a_text_as_it_is(text: str) -> None:
    assert unescape(escape_latex(text)) == " ".join(text.replace("\x1b", "\\x1b").split())
    for ligature in ("--", "?`", "''", "``", "<<", ">>", "fi&"):
        assert ligature not in escape_latex(text)
    table = latex_table(
        TableBlock(("key", "val"), [[Cell(text), Cell("-1.5 ± 0.1", -1.5)], [Cell("-"), Cell("2", 2)]], 0)
    )
    head, rule, *lines, _, _ = table.splitlines()[3:]
    assert head == r"key & val \\" and rule == r"\midrule"
    first, second = (line.removesuffix(r" \\").split(" & ") for line in lines)
    assert [unescape(cell.removeprefix(r"\textbf")) for cell in first] == [unescape(escape_latex(text)), "-1.5 ± 0.1"]
    assert second == ["--", "2"] and not re.match(r"\s*[\[*]", lines[1]), "neither is an argument of the row before"
    assert table.splitlines()[1] == r"\begin{tabular}{lr}"


def test_a_report_of_one_run_is_its_loss_curve(tmp_path: Path) -> None:
    write_run(tmp_path, [10.8, 4.0, 3.0, 2.9, 2.8, 2.7], name="$x$&<y>")
    assert written(tmp_path, format=("svg",)) == {"plots/curves.svg"}
    shown = list(ElementTree.parse(tmp_path / "plots" / "curves.svg").getroot().itertext())
    assert any("best 2.7000" in text for text in shown) and "train, running mean" in shown


def test_causes_are_named(tmp_path: Path) -> None:
    """A grid of rates and dropout: its effects are differences of marginal means; heads and width are confounded."""
    rates, study = (1e-3, 2e-3, 4e-3), tmp_path / "study"
    for i, lr in enumerate(rates):
        for dropout, width in ((0.0, 16), (0.2, 32)):
            base = 2.0 + 0.1 * (i - 0.8) ** 2 + dropout
            keys = {"optimizer.lr": lr, "model.dropout": dropout, "model.n_embd": width}
            seeds(study, [base, base + 0.01 * (i + 1), base - 0.01], **keys)
    written(study, format=("md", "json"))
    (ranking,) = json.loads((study / "report.json").read_text())["rankings"]
    causes = ranking["causes"]
    assert causes["noise"] == "seeds" and causes["confounded"] == [["model.n_embd", "model.dropout"]]
    means = {lr: [s["val_loss"] for s in ranking["settings"] if s["optimizer.lr"] == lr] for lr in rates}
    every = sum(map(sum, means.values())) / 6
    effects = {row["at"]["optimizer.lr"]: row["effect"] for row in causes["effects"] if "optimizer.lr" in row["at"]}
    assert effects == pytest.approx({lr: sum(own) / 2 - every for lr, own in means.items()})
    average, first, second = causes["responses"]
    assert average["at"] == {} and {first["at"]["model.n_embd"], second["at"]["model.n_embd"]} == {16, 32}
    assert average["optimum_low"] < average["optimum"] < average["optimum_high"] and average["highest_stable"] == 4e-3
    assert average["optimum"] == pytest.approx(1e-3 * 2**0.8, rel=0.05)
    assert average["factor_2_off"] == pytest.approx(0.1, abs=0.01) and average["used"] == list(rates)
    documented = (ROOT / "docs" / "analysis.md").read_text()
    for key in {*causes, *average, *causes["effects"][0]}:
        assert f"`{key}`" in documented, key
    text = (study / "report.md").read_text()
    assert "Confounded: model.n\\_embd, model.dropout. Their effects can't be told apart." in text
    assert re.search(r"\| lr=0.004 \| \+0\.\d+ ± 0\.\d+ \| \\< 0.001 \|", text) and "\n## Causes\n" in text
    assert re.search(r"\| lr \| average \| 0.0017\d \| 0.001\d+ to 0.00\d+ \| \+0.1\d+ ± ", text)
    single = tmp_path / "single"
    for lr in (1e-3, 1e-2):
        seeds(single, [2.0, 2.1], **{"optimizer.lr": lr})
    written(single)
    assert "Causes" not in (single / "report.md").read_text(), "the ranking says all about one key of two values"


@pytest.mark.slow
def test_a_thousand_runs(tmp_path: Path) -> None:
    """250 settings with four seeds: order, means, pooled intervals and curves, computed again from the losses."""
    losses = write_grid(tmp_path)
    written(tmp_path, format=("json", "csv"), plots=())
    document = json.loads((tmp_path / "report.json").read_text())
    settings = document["rankings"][0]["settings"]
    means = {rate: np.mean(values) for rate, values in losses.items()}
    assert [row["optimizer.lr"] for row in settings] == sorted(means, key=lambda rate: means[rate])
    pooled = np.sqrt(np.mean([np.var(values, ddof=1) for values in losses.values()]) / 2)  # of a difference of means
    half = pooled * stats.studentized_range.ppf(0.95, 250, 750) / np.sqrt(2)
    for row in settings[1:]:
        assert row["val_loss"] == pytest.approx(means[row["optimizer.lr"]]) and row["finished"] == 4
        assert row["difference_ci95"] == pytest.approx(half, rel=1e-3)
        assert row["verdict"] == ("worse" if row["difference"] > row["difference_ci95"] else "undecided")
    assert len(document["runs"]) == 1000 and {len(run["eval"]["step"]) for run in document["runs"]} == {50}
    assert len(read_csv(tmp_path / "ranking.csv")) == 250
