"""A/B tests: the number of seeds against simulated tests, the ledger, refusals, and where two runs first differ."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import nanogpt.checkpoint
from cli.argv import collect_sides
from cli.entry import dispatch
from experiments import ab
from experiments.ab import read_ledger, run_ab
from experiments.comparison import Comparison
from experiments.find import find_runs, read_statuses
from experiments.first_difference import find_first_difference
from experiments.ranking import SeedGroup, group_by_seed
from experiments.results import read_results
from nanogpt.checkpoint import LoadedCheckpoint, load_verified
from nanogpt.config import AbConfig, TargetsConfig, TrainConfig
from nanogpt.errors import BadInput, Diverged
from nanogpt.json_output import to_json_value
from nanogpt.provenance import run_git
from nanogpt.training.run import train
from nanogpt.verdicts import PLANNED_LEVEL, count_seeds, judge_settings
from tests.commands import ROOT, command
from tests.experiments.fake_runs import made_config, write_run
from tests.json_documents import check_document

QUICK = {
    "training.steps": 4,
    "eval.every": 2,
    "eval.train": False,
    "tracking.sample_tokens": 0,
    "tracking.log_every": 1,
}


def read_groups(*folders: Path) -> list[SeedGroup]:
    found = find_runs(TargetsConfig(targets=tuple(map(str, folders))))
    return group_by_seed(read_results(read_statuses(found)[0])[0])


def test_the_first_row_that_differs(tmp_path: Path) -> None:
    for seed in (3, 2):
        write_run(tmp_path / "a", [5.0, 4.0, 3.0], **{"training.seed": seed})
        path = write_run(tmp_path / "b", [5.0, 4.0, 3.0], **{"training.seed": seed, "optimizer.lr": 2e-3})
    a, b = read_groups(tmp_path / "a", tmp_path / "b")
    same = find_first_difference(("A", "B"), (a, b))
    assert same and (same.seed, same.rows, same.step, same.values, same.checkpoint) == (2, 7, None, {}, None)
    assert same.describe() == "A and B, seed 2: all 7 rows that both recorded are equal."
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(
        text.replace('"step": 15, "tokens": 1920, "loss": 4.0', '"step": 15, "tokens": 1920, "loss": 4.5')
    )
    b = read_groups(tmp_path / "b")[0]
    found = find_first_difference(("A", "B"), (a, b))
    assert found and (found.step, found.values) == (15, {"loss": (4.0, 4.5)})
    assert found.describe() == "A and B, seed 2: the first recorded difference is at step 15: loss 4 and 4.5."
    write_run(tmp_path / "c", [5.0, 4.0], **{"training.seed": 9})
    assert find_first_difference(("A", "C"), (a, read_groups(tmp_path / "c")[0])) is None


def test_tensors_that_differ(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for new in (False, True):
        assert train(config(**QUICK, new_attempt=new)) == 0
    sides = [(name, group) for name, group in zip("AB", read_groups(tmp_path / "runs"), strict=True)]
    (found,) = Comparison(sides, "val_loss").first_differences
    assert found.step is None and found.checkpoint and found.checkpoint.differing == 0
    assert found.checkpoint.step == 2 and found.checkpoint.tensors > 20
    assert re.search(r"are equal\. Checkpoint of step 2: differing tensors 0 of \d+\.$", found.describe())

    model = load_verified(sides[0][1].first.path / "checkpoints" / "step-00000002").model
    most, other = [name for name, tensor in model.items() if tensor.norm()][:2]

    def load(path: Path) -> LoadedCheckpoint:
        loaded = load_verified(path)
        if path.parents[1].name.endswith("-2"):
            loaded.model[most].mul_(1.5)
            loaded.model[other].mul_(1.01)
        return loaded

    monkeypatch.setattr(nanogpt.checkpoint, "load_verified", load)
    (found,) = Comparison(sides, "val_loss").first_differences
    assert found.checkpoint and (found.checkpoint.differing, found.checkpoint.largest) == (2, most)
    assert found.checkpoint.relative == pytest.approx(0.5)
    assert found.describe().endswith(f", {most} most, by 0.5 of its norm.")
    check_document(to_json_value(Comparison(sides, "val_loss")), "compare")


def share_told(difference: float, studies: int, tolerance: float) -> float:
    """Return how often two sides are told apart, with three seeds each and then as many as the noise asks for."""
    rng, told = np.random.default_rng(8), 0
    for _ in range(studies):
        drawn = rng.normal([[0.0], [difference]], 0.01, (2, 100))
        count, needed = 0, 3
        while needed > count:
            count = needed
            losses = [dict(enumerate(map(float, side[:count]))) for side in drawn]
            judged = judge_settings(losses, 0, tolerance, PLANNED_LEVEL)
            assert judged.noise is not None
            needed = count_seeds(sum(judged.noise.variances) / 2, tolerance, 100, PLANNED_LEVEL)
        told += judged.verdicts[1].kind in ("better", "worse")
    return told / studies


def test_seeds_tell_the_difference_that_they_are_for() -> None:
    assert count_seeds(0.01**2, 0.1, 20) == 2 and count_seeds(0.01**2, 0.001, 20) == 20
    assert count_seeds(0.01**2, 0.01, 50) == 17, "Cohen (1988): 17 each for one standard deviation at a power of 0.8"


@pytest.mark.slow
def test_the_share_of_false_verdicts_and_the_power_over_ten_thousand_tests() -> None:
    """Three seeds of each know the noise badly, and where they underestimate it, the test ends early."""
    assert share_told(0.0, 10_000, 0.01) < 0.055
    assert 0.8 < share_told(0.01, 10_000, 0.01) < 0.9


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Sides and numbers of seeds that were trained, by a training that writes losses at once."""
    calls: list[tuple[str, int]] = []
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 50))

    def train_side(folder: Path, words: Sequence[str], code: Path | None, count: int) -> int:
        calls.append((" ".join(words), count))
        shift = sum(float(word.partition("=")[2]) for word in words if word.startswith("model.dropout="))
        for seed in range(1, count + 1):
            config = made_config(**{"training.steps": 10, "training.seed": seed, "model.dropout": shift})
            if not list(folder.glob(f"{seed}-*")):
                loss = 2.0 + shift + float(noise[int(shift > 0), seed])
                state = "diverged" if shift > 0.8 and seed == 2 else "finished"
                start = {"start_unix_s": -36.0}  # the last row is of time 0
                write_run(folder, [5.0, loss], str(seed), state, config=config, starts=[start])
        return Diverged.exit_code if shift > 0.8 else 0

    monkeypatch.setattr(ab, "train_side", train_side)
    return calls


def ask(folder: Path, *words: str) -> int:
    own = collect_sides([*words, f"runs_dir={folder}"], AbConfig)
    return dispatch("ab", AbConfig, run_ab, own)


def test_a_test_trains_as_many_seeds_as_it_needs(
    trainings: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    words = (
        "model.dropout=0",
        "model.dropout=0.03 training.steps=10",
        "model=tiny",
        "difference=0.01",
        "hypothesis=it hurts, a lot",
    )
    assert ask(runs, *words) == 0
    counts = [count for _, count in trainings]
    assert (
        counts[:2] == [3, 3] and counts[-1] > 5 and trainings[1][0] == "model=tiny model.dropout=0.03 training.steps=10"
    )
    output = capsys.readouterr().out
    assert re.search(r"change - base: \+0\.0[23]\d\d ± 0\.0\d{3} \(val_loss\): worse", output)
    assert "base and change, seed 1: the first recorded difference is at step 10: " in output
    (test,) = read_ledger(runs)["tests"]
    assert (test["hypothesis"], test["verdict"], test["base"]["seeds"]) == ("it hurts, a lot", "worse", counts[-1])
    assert test["train"] == ["model=tiny"] and test["base"]["commit"] is None
    assert test["cost"]["cpu_hours"] == pytest.approx(2 * counts[-1] * 0.01) and test["cost"]["gpu_hours"] == 0
    sides = [
        [group.losses_by_seed("val_loss")]
        for side in ("base", "change")
        for group in read_groups(Path(test[side]["runs"]))
    ]
    expected = judge_settings([losses for own in sides for losses in own], 0, 0.01, PLANNED_LEVEL).verdicts[1]
    assert (test["difference"], test["difference_ci95"]) == (expected.difference, expected.half)
    assert ask(runs, *words) == 0 and len(read_ledger(runs)["tests"]) == 1, "the same test again is no other"
    assert ask(runs, "model.dropout=0", "model.dropout=0.9") == 0
    capsys.readouterr()
    with open(runs / "ledger.jsonl", "a") as file:
        file.write("{\n")
    assert ask(runs) == 0
    table = capsys.readouterr().out
    assert (
        "A/B tests" in table
        and "hurts" in table
        and "diverged" in table
        and re.search(rf"{counts[-1] * 0.02:.3g}\s", table)
    ), table
    assert ask(runs, "format=json") == 0
    assert read_ledger(runs)["unreadable_lines"] == 1


def test_documents(trainings: list[tuple[str, int]], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert ask(tmp_path / "runs", "", "model.dropout=0.001", "max_seeds=2") == 0
    (test,) = read_ledger(tmp_path / "runs")["tests"]
    check_document(to_json_value(test), "ab")
    assert json.loads((tmp_path / "runs" / "ledger.jsonl").read_text()) == test


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model.dropout=0",), "sides=model.dropout=0: two are needed, base and change"),
        (("model.dropout=0", "model.name='tiny"), "model.name='tiny: No closing quotation"),
        (("model.dropout=0", "no-such-commit"), "no-such-commit: no such commit in the checkout of this code"),
        (("a=1", "b=2", "difference=0"), "difference=0"),
        (("a=1", "b=2", "max_seeds=1"), "max_seeds=1"),
        (("model.drpout=0", "model.dropout=0.1"), "model.drpout: no such key or group; did you mean 'model.dropout'?"),
        (("model.dropout=0", "model.dropout=0.1,0.2"), "model.dropout=0.1,0.2: a sweep; a side is one setting"),
    ],
)
def test_refusals(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        ask(tmp_path, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_commits(tmp_path: Path, corpus: Path) -> None:
    head = (run_git(ROOT, "rev-parse", "HEAD") or "").strip()
    if not head:
        pytest.skip("not a git checkout")
    words = (
        f"hardware=cpu data=text data.source={corpus} data.tokenizer=char model=tiny model.n_layer=1 model.n_embd=16"
    )
    words += " model.n_head=2 training.steps=30 optimizer.lr=1e-2 schedule.warmup_steps=1 eval.tokens=512"
    words += " tracking.sample_tokens=0 max_seeds=2"
    done = command("-m", "cli", "ab", head, head[:12], *words.split(), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (test,) = read_ledger(tmp_path / "runs")["tests"]
    assert test["base"]["commit"] == test["change"]["commit"] == head
    assert test["difference"] == 0.0 and "differing tensors 0 of" in test["first_difference"]
    (run,) = (tmp_path / test["base"]["runs"]).glob("*seed1*")
    assert json.loads((run / "provenance.json").read_text())[0]["git"]["commit"] == test["base"]["commit"]
    assert "nanogpt-ab-" not in (run_git(ROOT, "worktree", "list") or "")
