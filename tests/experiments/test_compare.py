"""Runs side by side: numbers with their significance, losses at equal cost, differences in settings and code."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.compare import compare, equal_cost_table, page_blocks
from experiments.comparison import Comparison
from experiments.document import Block, Cell, Code, Note, TableBlock
from experiments.find import find_runs, read_statuses
from experiments.ranking import group_by_seed
from experiments.results import read_results
from nanogpt.config import CompareConfig, TargetsConfig
from nanogpt.errors import BadInput
from nanogpt.provenance import compute_code_digest, run_git
from tests.experiments.fake_runs import BATCH, seeds, write_run


def sides(*targets: Path):  # type: ignore[no-untyped-def]
    statuses, _ = read_statuses(find_runs(TargetsConfig(targets=tuple(map(str, targets)))))
    return [(chr(ord("A") + i), setting) for i, setting in enumerate(group_by_seed(read_results(statuses)[0]))]


def tables(page: list[Block]) -> dict[str, TableBlock]:
    """Return tables by their second column."""
    return {block.columns[1]: block for block in page if isinstance(block, TableBlock)}


def column(table: TableBlock, title: str) -> list[Cell]:
    return [row[list(table.columns).index(title)] for row in table.rows]


def test_seeds_give_a_difference_with_its_significance(tmp_path: Path) -> None:
    losses = {1e-3: [2.0, 2.1, 2.2], 3e-3: [2.4, 2.5, 2.7], 1e-2: [3.0]}
    for lr, finals in losses.items():
        seeds(tmp_path / str(lr), finals, **{"optimizer.lr": lr})
    numbers = tables(list(page_blocks(Comparison(sides(*(tmp_path / str(lr) for lr in losses)), "val_loss"))))["seeds"]
    variance = (2 * np.var(losses[1e-3], ddof=1) + 2 * np.var(losses[3e-3], ddof=1)) / 4
    quantile = stats.studentized_range.ppf(0.95, 3, 4) / np.sqrt(2)
    halves = [quantile * np.sqrt(variance * (1 / 3 + 1 / n)) for n in (3, 1)]
    gaps = [np.mean(losses[3e-3]) - 2.1, 0.9]
    shown = [f"{gap:+.4f} ± {half:.4f}" for gap, half in zip(gaps, halves, strict=True)]
    assert [cell.text for cell in column(numbers, "final val - A")] == ["", *shown]
    assert [cell.text for cell in column(numbers, "verdict")] == ["", "worse", "worse"]
    assert column(numbers, "tokens")[0].value == 20 * BATCH


def test_equal_cost_is_where_the_shorter_one_ends(tmp_path: Path) -> None:
    """One run is twice as long and twice as fast: at equal time the other has half of its tokens."""
    write_run(tmp_path / "a", [6.0, 4.0, 2.0], **{"optimizer.lr": 1e-3})
    write_run(tmp_path / "b", [6.0, 5.0, 4.0, 3.0, 1.0], rates=[2000.0] * 4, **{"optimizer.lr": 1e-2})
    table = equal_cost_table(sides(tmp_path / "a", tmp_path / "b"))
    assert table is not None
    found = {(row[0].text, row[1].text): [cell.value for cell in row[2:]] for row in table.rows}
    assert found["tokens", "2.56k"] == pytest.approx([2.0, 4.0]) and found["tokens", "1.28k"] == pytest.approx(
        [4.0, 5.0]
    )
    assert found["time", "2.6s"] == pytest.approx([2.0, 1.0]) and found["time", "1.3s"] == pytest.approx([4.0, 4.0])
    assert [key[0] for key in found].count("flops") == 4


def test_settings_and_code_that_differ(tmp_path: Path) -> None:
    """Of two commits of this very repository, and changes on top of one of them."""
    head = (run_git(Path(__file__).parent, "rev-parse", "HEAD") or "").strip()
    before = (run_git(Path(__file__).parent, "rev-list", "--max-parents=0", "HEAD") or "").split()
    old: dict[str, object] = {"code": "01d", "git": {"commit": before[0] if before else "", "changed": [], "diff": ""}}
    diff = {"commit": head, "changed": [" M nanogpt/a.py"], "diff": "+ added <b>"}
    write_run(tmp_path / "a", [5.0, 3.0], starts=[old], **{"optimizer.lr": 1e-3, "hardware.threads": 1})
    write_run(tmp_path / "b", [5.0, 2.0], starts=[{"git": diff}], **{"optimizer.lr": 1e-2, "hardware.threads": 2})
    page = list(page_blocks(Comparison(sides(tmp_path / "a", tmp_path / "b"), "val_loss")))
    differing = tables(page)["A"]
    assert [[cell.text for cell in row] for row in differing.rows] == [
        ["optimizer.lr", "0.001", "0.01", "yes"],
        ["hardware.threads", "1", "2", "no"],
    ]
    notes = " ".join(block.text for block in page if isinstance(block, Note))
    assert "A and B: nanogpt/ differs" in notes and "uncommitted changes in nanogpt/a.py" in notes
    code = [block for block in page if isinstance(block, Code)]
    assert code[-1].text == "+ added <b>" and code[-1].title == "uncommitted changes of B"
    if head and before != [head]:
        assert " changed, " in code[0].text and "diff --git" in code[1].text


def test_code_that_is_at_hand_is_compared_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As launchers freeze it: two copies in the study's records."""
    runs: list[Path] = []
    for name, line in (("a", "x = 1"), ("b", "x = '<b>'\x1b[31m")):
        copy = tmp_path / "study" / ".launch" / "code" / name
        for part, text in (("nanogpt", f"first\n{line}\n"), ("conf", "same\n")):
            (copy / part).mkdir(parents=True)
            (copy / part / "one.py").write_text(text)
        starts = [{"code": compute_code_digest(copy / "nanogpt")}]
        runs.append(write_run(tmp_path / "study", [5.0, 3.0], name=name, starts=starts))
    short, full = [b.text for b in page_blocks(Comparison(sides(*runs), "val_loss")) if isinstance(b, Code)]
    assert short == "nanogpt/one.py: +1 -1"
    assert full.splitlines()[:2] == ["--- a/nanogpt/one.py", "+++ b/nanogpt/one.py"]
    assert full.splitlines()[-2:] == ["-x = 1", "+x = '<b>'\x1b[31m"]
    assert compare(CompareConfig(targets=tuple(map(str, runs)), out=str(tmp_path / "out"))) == 0
    told = capsys.readouterr().out
    assert "+x = '<b>'\\x1b[31m" in told and "\x1b" not in told
    assert "+x = &#39;&lt;b&gt;&#39;" in (tmp_path / "out" / "compare.html").read_text()


def test_what_isn_t_finished_has_no_significance(tmp_path: Path) -> None:
    seeds(tmp_path / "a", [2.0, 2.1, 2.2], **{"optimizer.lr": 1e-3})
    for i in (1, 2):
        keys = {"optimizer.lr": 1e-2, "training.seed": i, "training.steps": 40}
        write_run(tmp_path / "b", [5.0, 4.0 + i], name=f"b{i}", state="stopped", **keys)  # type: ignore[arg-type]
    numbers = tables(list(page_blocks(Comparison(sides(tmp_path / "a", tmp_path / "b"), "val_loss"))))["seeds"]
    assert [cell.text for cell in column(numbers, "final val - A")] == ["", "(+3.4000)"]
    assert column(numbers, "verdict")[1].text == "-"


def test_a_commit_that_isn_t_one_never_reaches_git(tmp_path: Path) -> None:
    for name, commit in (("a", "--output=/tmp/x"), ("b", "HEAD")):
        write_run(tmp_path / name, [5.0, 3.0], starts=[{"code": name, "git": {"commit": commit}}])
    page = list(page_blocks(Comparison(sides(tmp_path / "a", tmp_path / "b"), "val_loss")))
    assert not [block for block in page if isinstance(block, Code)]
    assert "commits: A unknown, B unknown" in " ".join(block.text for block in page if isinstance(block, Note))


def test_the_page_and_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path, [5.0, lr * 100], name=f"lr{lr}", **{"optimizer.lr": lr}) for lr in (0.02, 0.03)]
    targets = tuple(map(str, runs))
    assert compare(CompareConfig(targets=targets)) == 0
    told = capsys.readouterr().out
    for expected in ("+1.0000", "optimizer.lr", "the same code", "nothing is known about noise", "At equal cost"):
        assert expected in told
    assert {path.name for path in tmp_path.iterdir()} == {run.name for run in runs}, "nothing is written"
    out = tmp_path / "out"
    assert compare(CompareConfig(targets=targets, out=str(out))) == 0
    assert {path.name for path in out.iterdir()} == {"compare.md", "compare.html", "plots"}
    assert {path.stem for path in (out / "plots").iterdir()} == {"compare-tokens", "compare-flops", "compare-time"}


def test_attempts_of_one_config_can_be_compared(tmp_path: Path) -> None:
    """They have equal settings and seeds, but for example different code."""
    for name, loss in (("old", 3.0), ("new", 2.0)):
        seeds(tmp_path / name, [loss, loss + 0.1])
    numbers = tables(list(page_blocks(Comparison(sides(tmp_path / "old", tmp_path / "new"), "val_loss"))))["seeds"]
    assert [cell.text for cell in column(numbers, "seeds")] == ["2", "2"]
    assert column(numbers, "final val - A")[1].value == pytest.approx(-1.0)


def test_what_can_t_be_compared(tmp_path: Path) -> None:
    seeds(tmp_path / "one", [2.0, 2.1])
    with pytest.raises(BadInput, match="a comparison needs two runs that differ"):
        compare(CompareConfig(targets=(str(tmp_path / "one"),)))
    for i in range(27):
        write_run(tmp_path / "many", [5.0, 2.0], name=f"r{i}", **{"optimizer.lr": 1e-3 * (i + 1)})
    with pytest.raises(BadInput, match="27 settings; at most 26"):
        compare(CompareConfig(targets=(str(tmp_path / "many"),)))
