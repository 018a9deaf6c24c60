"""Reference curves: the band against its formula and over simulated runs, what it applies to, files, and a training."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cli.sweep_request import read_sweep
from experiments.report import report
from nanogpt.config import ReportConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.measurement import Measurement, RecordedMeasurement, to_dict
from nanogpt.reference import (
    PACKAGED,
    Reference,
    choose_reference,
    load_references,
    make_reference,
    read_references,
    to_json,
    without_seed,
)
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import signature
from nanogpt.training.run import train
from tests.experiments.fake_runs import made_config, seeds

FACTS = RecordedMeasurement(
    tokenizer="t", vocab_size=256, windows="w", text="x", coverage=1.0, data="d", precision="fp32", fp8=False
)
MEASURED = Measurement(**to_dict(FACTS))
CURVES = {
    1: {0: 5.5, 10: 3.0, 20: 2.0},
    2: {0: 5.5, 10: 3.2, 20: 2.1},
    3: {0: 5.5, 10: 3.1, 20: 2.3},
    4: {10: 3.4, 20: 2.1},
}


def reference(curves: dict[int, dict[int, float]] = CURVES) -> Reference:
    found = make_reference("known", made_config(), MEASURED, curves, {})
    assert found is not None
    return found


def test_the_band_is_a_prediction_interval_for_both_steps_together() -> None:
    found = reference()
    assert list(found.limits) == [10, 20], "step 0 is before the training"
    for step, (low, high) in found.limits.items():
        losses = [curve[step] for curve in CURVES.values()]
        half = stats.t.ppf(1 - 0.01 / 2 / 2, 3) * np.std(losses, ddof=1) * np.sqrt(1 + 1 / 4)
        assert (low, high) == pytest.approx((np.mean(losses) - half, np.mean(losses) + half))
    (low, high) = found.limits[20]
    assert found.find_outside({0: 9.0, 10: 3.1, 15: 9.0, 20: high + 1e-6}) == {20: "above"}
    assert found.find_outside({20: low - 1e-6}) == {20: "below"} and found.find_outside({20: low, 10: 3.1}) == {}
    assert found.describe(10, 3.1) == "  inside reference" and found.describe(15, 3.1) == ""
    assert found.describe(20, 9.0) == f"  above reference {low:.4f} to {high:.4f}"
    assert make_reference("few", made_config(), MEASURED, {1: {10: 3.0}, 2: {10: 3.0}, 3: {10: 3.0}}, {}) is None


def outside_share(studies: int, n: int, steps: int) -> float:
    """Return how often another run of the same setting is outside at any step."""
    rng, outside = np.random.default_rng(n), 0
    for _ in range(studies):  # losses of a run differ from the mean alike at all steps, in part
        losses = rng.normal(size=(n + 1, 1)) + rng.normal(size=(n + 1, steps))
        *known, other = [{10 * (i + 1): float(loss) for i, loss in enumerate(own)} for own in losses]
        outside += bool(reference(dict(enumerate(known))).find_outside(other))
    return outside / studies


def test_a_healthy_run_is_seldom_outside() -> None:
    assert 0.001 < outside_share(1000, 8, 4) < 0.018


@pytest.mark.slow
def test_one_healthy_run_in_a_hundred_is_outside() -> None:
    for n, steps in ((4, 4), (8, 1), (8, 4), (8, 20)):
        assert 0.004 < outside_share(10_000, n, steps) < 0.013, (n, steps)


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ({"training.seed": 77}, True),
        ({"eval.every": 3, "name": "other", "tracking.log_every": 1}, True),
        ({"hardware.precision": "fp32"}, True),
        ({"optimizer.lr": 2e-3}, False),
        ({"training.steps": 30}, False),
    ],
)
def test_the_same_settings_but_for_the_seed(changes: dict[str, object], applies: bool) -> None:
    assert reference().applies_to(made_config(**changes), MEASURED) is applies


def test_the_same_data_and_measurement() -> None:
    found, config = reference(), made_config()
    for change in (
        {"data": "e"},
        {"data": None},
        {"windows": "v"},
        {"tokenizer": "u"},
        {"precision": "bf16"},
        {"fp8": True},
    ):
        assert not found.applies_to(config, replace(MEASURED, **change)), change
    assert not found.applies_to(config, Measurement())
    differences = found.find_differences(made_config(**{"optimizer.lr": 2e-3, "training.seed": 9}))
    assert differences == ["optimizer.lr 0.01, here 0.002"]


def test_files(tmp_path: Path) -> None:
    stored = reference()
    file = tmp_path / "runs" / "mine" / "reference.json"
    file.parent.mkdir(parents=True)
    file.write_text(to_json([stored]))
    for given in ("mine", str(file.parent), str(file)):
        (found,) = load_references(given, str(tmp_path / "runs"), "reference")
        assert found.name == "known" and found.limits == reference().limits
        assert found.applies_to(made_config(), MEASURED)
    for given, message in {
        "mein": "reference=mein: no such reference or study; did you mean 'mine'?",
        "char_fast_cpu": "reference=char_fast_cpu: no such reference or study; did you mean 'shakespeare_char_fast_",
        "..": "reference=..: has no reference.json; nanogpt report .. format=reference writes it",
    }.items():
        with pytest.raises(BadInput, match=re.escape(message)):
            load_references(given, str(tmp_path / "runs"), "reference")
    for damage in (
        "{",
        "[]",
        "{}",
        to_json([stored]).replace('"mean": [', '"mean": [1.0,'),
        "[{}]",
        to_json([stored]).replace('"mean"', '"means"'),
    ):
        file.write_text(damage)
        with pytest.raises(BadInput, match=r"reference\.json: not a reference curve: "):
            read_references(file)


@pytest.mark.parametrize("name", ["quickstart", "shakespeare_char_cpu", "shakespeare_char_fast_cpu"])
def test_packaged_references_are_of_the_experiments_as_they_are(name: str) -> None:
    (found,) = read_references(PACKAGED / f"{name}.json")
    config = read_sweep("train", TrainConfig, [f"experiment={name}"], False).points[0].config
    assert signature(without_seed(found.config)) == signature(without_seed(config)), found.find_differences(config)
    steps = config.training.steps or 0
    assert found.steps == tuple(step for step in range(1, steps + 1) if config.evaluates_at(step, steps))
    assert len(found.seeds) >= 4 and all(0 < spread < 0.1 for spread in found.deviation)
    assert all(re.fullmatch("[0-9a-f]{40}", found.made["git"]) for _ in [0]) and "/" not in to_json([found])


@pytest.mark.slow
def test_a_training_is_compared_with_a_study(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    quick = {"training.steps": 6, "eval.every": 3, "eval.train": False, "tracking.sample_tokens": 0}
    study = tmp_path / "runs" / "study"
    for seed in (1, 2, 3, 4):
        assert train(config(**quick, **{"training.seed": seed, "runs_dir": str(study)})) == 0
    assert report(ReportConfig(targets=(str(study),), format=("reference",))) == 0
    for lr, words in ((1e-2, "inside reference"), (1.1e-2, None)):
        own = config(**quick, **{"training.seed": 5, "tracking.reference": str(study), "optimizer.lr": lr})
        assert train(own) == 0
        path = locate_run(own)
        lines = [line for line in (path / "log.txt").read_text().splitlines() if " val " in line]
        assert len(lines) == 3 and "reference" not in lines[0]
        assert all(line.endswith(words) if words else "reference" not in line for line in lines[1:])
    changed = config(**quick, **{"training.seed": 6, "tracking.reference": "nowhere"})
    with pytest.raises(BadInput, match=r"tracking\.reference=nowhere: no such reference or study"):
        train(changed)
    assert not locate_run(changed).exists()
    unseeded = (
        RunDirectory(path)
        .read_config()
        .model_copy(update={"tracking": own.tracking.model_copy(update={"reference": None})})
    )
    assert choose_reference(unseeded, MEASURED) is None


def test_a_report_says_which_runs_are_inside(tmp_path: Path) -> None:
    about = {"starts": [{"data": "d", "measurement": to_dict(FACTS)}]}
    seeds(tmp_path / "known", [2.0, 2.01, 2.03, 1.99], **about)
    assert report(ReportConfig(targets=(str(tmp_path / "known"),), format=("reference",))) == 0
    seeds(tmp_path / "new", [2.01, 2.9], **about)
    seeds(tmp_path / "new", [2.0], **about, **{"optimizer.lr": 2e-3})
    changes = {"reference": str(tmp_path / "known"), "format": ("md", "json")}
    assert report(ReportConfig(targets=(str(tmp_path / "new"),), **changes)) == 0  # type: ignore[arg-type]
    text = (tmp_path / "new" / "report.md").read_text()
    rows = [line for line in text.split("## Reference: known")[1].split("##")[0].splitlines() if "seed" in line]
    assert "2 of 2" in rows[0] and re.search(
        r"seed2-\w+ \| 0 of 2 \| step 10: 3.4000, above 2.\d+ to 2.\d+; step 20: 2.9", rows[1]
    )
    assert len(rows) == 3 and "99% prediction interval" in rows[2], "the run with another rate is not compared"
    assert "shaded: the band of the reference" in text
    assert (
        report(ReportConfig(targets=(str(tmp_path / "new"),), format=("md",), reference="shakespeare_char_fast_cpu"))
        == 0
    )
    text = (tmp_path / "new" / "report.md").read_text()
    assert "No run has the settings of this reference: " in text and "shaded" not in text
    with pytest.raises(BadInput, match="format=reference: no setting has 4 finished seeds and none that diverged"):
        report(ReportConfig(targets=(str(tmp_path / "new"),), format=("reference",)))
