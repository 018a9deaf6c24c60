"""Results that were not measured on the same: ranked by bits per byte, apart, or not at all; losses above chance."""

import re
from pathlib import Path

import pytest

from experiments.compare import page_blocks
from experiments.comparison import Comparison
from experiments.document import Block, Note, TableBlock
from experiments.list_runs import list_runs
from experiments.ranking import group_by_seed, rank_groups
from experiments.results import RunResult, read_result
from experiments.scaling.runs import read_finished_runs
from launch.status import read_run
from nanogpt.config import ListConfig
from nanogpt.errors import BadInput
from nanogpt.loss_check import find_loss_problem
from tests.experiments.fake_runs import write_run
from tests.experiments.page import reported


def measured(
    tokenizer: str = "char", text: str = "t", precision: str = "fp32", fp8: bool = False, data: str | None = None
) -> dict[str, object]:
    about = {"tokenizer": tokenizer * 9, "vocab_size": 65, "windows": f"{tokenizer} {text}", "text": text}
    about |= {"coverage": 1.0, "data": data or f"{tokenizer} {text}", "precision": precision, "fp8": fp8}
    return {"from_step": 0, "evaluated": -1, "measurement": about}


def result(path: Path) -> RunResult:
    return read_result(read_run(path))


def with_bits(path: Path, bits: float) -> Path:
    file = path / "metrics.jsonl"
    file.write_text(re.sub(r'"val_bpb": [\d.e+-]+', f'"val_bpb": {bits}', file.read_text()))
    return path


def test_over_tokenizers_the_fewest_bits_per_byte_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer nats per token of a character, more bits per byte of the text."""
    with_bits(write_run(tmp_path, [4.0, 3.18], name="c", starts=[measured("char")]), 4.59)
    gpt2 = {"data.tokenizer": "gpt2"}
    with_bits(write_run(tmp_path, [4.0, 3.9], name="g", starts=[measured("gpt2")], **gpt2), 2.75)
    page = reported(tmp_path)
    assert page.column("tokenizer") == ["gpt2", "byte"] and page.column("bits/byte") == ["2.7500", "4.5900"]
    assert "final val" not in page.tables[0][0], "nats of other tokens would mislead"
    told = capsys.readouterr().out
    assert "ranked by bits per byte, because the tokenizer differs" in told
    assert "bits per byte" in (tmp_path / "report.md").read_text()


def test_other_texts_and_other_precisions_are_ranked_apart(tmp_path: Path) -> None:
    a, b = {"data.source": "a.txt"}, {"data.source": "b.txt"}
    write_run(tmp_path, [5.0, 2.0], name="a1", starts=[measured(text="a")], **a, **{"optimizer.lr": 1e-3})
    write_run(tmp_path, [5.0, 3.0], name="a2", starts=[measured(text="a")], **a, **{"optimizer.lr": 1e-2})
    write_run(tmp_path, [5.0, 1.0], name="b1", starts=[measured(text="b")], **b, **{"optimizer.lr": 1e-3})
    page = reported(tmp_path)
    assert page.column("#", 0) == ["1", "2"] and page.column("#", 1) == ["1"]
    assert page.column("final val", 0) == ["2.0000", "3.0000"] and page.column("final val", 1) == ["1.0000"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"curves.png", "curves-2.png", "sensitivity.png"}
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    assert "2 separate rankings" in text and "validation text a.txt" in text


def test_seeds_in_another_precision_are_no_seeds_of_it(tmp_path: Path) -> None:
    for seed, start in ((1, measured()), (2, measured(precision="bf16")), (3, measured(fp8=True))):
        write_run(tmp_path, [5.0, 2.0 + seed], name=f"s{seed}", starts=[start], **{"training.seed": seed})
    ranked, notes = rank_groups(group_by_seed(result(path) for path in sorted(tmp_path.iterdir())), "val_loss")
    assert [len(one.ranked) for one in ranked] == [1, 1, 1] and all(len(one.ranked[0].results) == 1 for one in ranked)
    assert "precision differs" in notes[0] and "fp8 differs" in notes[0]


def page_of(*paths: Path) -> list[Block]:
    found = group_by_seed(result(path) for path in paths)
    return list(page_blocks(Comparison([(chr(65 + i), setting) for i, setting in enumerate(found)], "val_loss")))


def rows_of(page: list[Block], column: str) -> dict[str, list[str]]:
    table = next(block for block in page if isinstance(block, TableBlock) and block.columns[0] == column)
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_compare_shows_what_differs_by_content(tmp_path: Path) -> None:
    texts = [
        write_run(tmp_path, [5.0, 3.0], name=name, starts=[measured(text=name)], **{"data.source": f"{name}.txt"})
        for name in ("a", "b")
    ]
    page = page_of(*texts)
    differing = rows_of(page, "key")
    assert differing["data.source"] == ["a.txt", "b.txt", "yes"]
    assert differing["content of the validation text"] == ["a", "b", "yes"] and "content of the data" in differing
    assert rows_of(page, "side")["B"][-1] != "0", "numbers are still shown"
    notes = " ".join(block.text for block in page if isinstance(block, Note))
    assert "Not comparable, because the validation text differs" in notes and "A; B" in notes


def test_the_same_text_at_another_path_is_the_same_content(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, [5.0, 3.0], name=name, starts=[measured()], **{"data.source": f"{name}.txt"})
        for name in ("a", "b")
    ]
    differing = rows_of(page_of(*paths), "key")
    assert differing == {"data.source": ["a.txt", "b.txt", "no: same content"]}


def test_precision_changes_the_result(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / name, [5.0, 3.0], starts=[measured(precision=name)], **{"hardware.precision": name})
        for name in ("fp32", "bf16")
    ]
    assert rows_of(page_of(*paths), "key")["hardware.precision"] == ["fp32", "bf16", "yes"]


def test_evaluations_before_a_change_do_not_count(tmp_path: Path) -> None:
    """The lowest loss was that of another text."""
    starts = [measured(text="easy"), measured(text="hard") | {"from_step": 10, "evaluated": 10}]
    found = result(write_run(tmp_path, [5.0, 1.0, 3.0, 2.5], starts=starts))
    assert [row["step"] for row in found.evals] == [20, 30] and found.value("best_val_loss") == 2.5
    assert "left out 2 earlier evaluations" in found.problems[0]


def test_list_says_what_is_not_comparable_and_what_is_above_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, [4.1, 3.0], name="a", starts=[measured(text="a")])
    assert list_runs(ListConfig(targets=(str(tmp_path),))) == 0
    assert "bits/byte" not in capsys.readouterr().out
    write_run(tmp_path, [4.1, 702.0], name="b", starts=[measured(text="b")], **{"data.source": "b.txt"})
    assert list_runs(ListConfig(targets=(str(tmp_path),))) == 0
    told = capsys.readouterr().out
    assert "bits/byte" in told and "not comparable" in told and "the validation text differs" in told
    assert "finished, loss above chance (ln 65 = 4.17)" in told


def test_a_run_that_lost_what_it_learnt_is_not_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, [4.1, 2.0, 702.0], name="wild", starts=[measured()], **{"optimizer.lr": 1.0})
    write_run(tmp_path, [4.1, 3.0, 2.5], name="good", starts=[measured()], **{"optimizer.lr": 1e-3})
    page = reported(tmp_path, metric="best_val_loss")
    assert page.column("lr") == ["0.001", "1"]
    assert page.column("status") == ["finished", "finished, loss above chance (ln 65 = 4.17)"]


@pytest.mark.parametrize(
    ("losses", "words", "diverged"),
    [
        ((2.5, 2.4, 65, 2.3), None, False),
        ((4.3, 4.3, 65, None), None, False),
        ((10.9, 10.9, 50_257, 10.9), None, False),
        ((5.0, 1.5, 65, 4.9), "above chance", True),
        ((6.0, 1.5, 65, 0.1), "above chance", False),
        ((3.5, 1.5, 65, 3.4), "far above its best", True),
        ((3.5, 1.5, 65, 0.2), "far above its best", False),
        ((702.0, 2.0, None, None), None, False),
    ],
)
def test_what_is_wrong_with_a_loss(
    losses: tuple[float, float, int | None, float | None], words: str | None, diverged: bool
) -> None:
    found = find_loss_problem(*losses)
    assert (found is None) == (words is None)
    assert found is None or (words is not None and words in found.description and found.diverged == diverged)


def test_laws_are_fitted_over_comparable_losses_alone(tmp_path: Path) -> None:
    for text in ("a", "b"):
        write_run(tmp_path, [4.0, 3.0], name=text, starts=[measured(text=text)], **{"data.source": f"{text}.txt"})
    with pytest.raises(BadInput, match=r"not comparable, because the validation text differs \(a.txt, b.txt\)"):
        read_finished_runs(f"{tmp_path}/*")
    assert len(read_finished_runs(f"{tmp_path}/a*")) == 1
