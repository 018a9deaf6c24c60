"""A law fitted to runs: it finds the one that was planted, says how sure it is, and refuses what is too little."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.scaling import fit
from experiments.scaling.command import run_scaling
from experiments.scaling.laws import find_optimum, predict_loss
from experiments.scaling.runs import ScalingRun, group_by_budget, read_finished_runs
from nanogpt.config import LawConfig, ScalingConfig, TrainConfig
from nanogpt.errors import BadInput
from nanogpt.estimates.flops import flops_per_token, parameter_counts
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import to_json
from nanogpt.tokenizer import FILE, ByteTokenizer
from nanogpt.tokenizer import to_json as tokenizer_json
from nanogpt.training.run import train
from tests.json_documents import check_document, read_strict
from tests.tiny_config import tiny_config

PLANTED = LawConfig(E=1.2, A=60.0, B=400.0, alpha=0.4, beta=0.45)


def synthetic(noise: float, seed: int = 0) -> list[ScalingRun]:
    """Five sizes at each of four budgets, around the planted optimum, C = 7 N D."""
    draws = np.random.default_rng(seed)
    runs: list[ScalingRun] = []
    for flops in (1e12, 1e13, 1e14, 1e15):
        for ratio in (0.2, 0.45, 1.0, 2.2, 5.0):
            n_params = find_optimum(PLANTED, flops, 7).n_params * ratio
            tokens = flops / 7 / n_params
            loss = predict_loss(PLANTED, n_params, tokens) * (1 + noise * draws.standard_normal())
            runs.append(ScalingRun(f"runs/{len(runs)}", n_params, tokens, flops, loss))
    return runs


def test_a_planted_law_is_recovered_exactly_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "STARTS", fit.STARTS[::8])
    law = fit.fit_law(synthetic(0.0))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(PLANTED, name), rel=0.01), name


@pytest.mark.slow
def test_a_planted_law_is_inside_the_intervals() -> None:
    """With noise of 0.3 % on each loss: the law, its prediction for ten times the budget, and not by wide intervals."""
    runs = synthetic(0.003)
    law = fit.fit_law(runs)
    laws = fit.bootstrap_laws(runs, law, 60, seed=1)
    for name in ("E", "alpha", "beta"):
        low, high = fit.percentile_interval([getattr(one, name) for one in laws])
        assert low <= getattr(PLANTED, name) <= high, name
    truth = find_optimum(PLANTED, 1e16, 7)
    low, high = fit.percentile_interval([find_optimum(one, 1e16, 7).loss for one in laws])
    assert low <= truth.loss <= high and high - low < 0.1
    low, high = fit.percentile_interval([find_optimum(one, 1e16, 7).n_params for one in laws])
    assert low <= truth.n_params <= high and high / low < 10


def test_parabolas_have_their_minima_at_the_planted_optima() -> None:
    curves = fit.fit_parabolas(synthetic(0.0))
    assert [curve.flops for curve in curves] == pytest.approx([1e12, 1e13, 1e14, 1e15])
    minima = [curve.optimum for curve in curves]
    for best in minima:
        assert best is not None
        truth = find_optimum(PLANTED, best.flops, 7)
        assert best.n_params == pytest.approx(truth.n_params, rel=0.15)
        assert best.loss == pytest.approx(truth.loss, rel=0.01)
    line = fit.fit_power_law([best for best in minima if best])
    assert line is not None and line[0] == pytest.approx(0.45 / 0.85, abs=0.02)  # beta / (alpha + beta)


def test_a_minimum_outside_the_sizes_is_none() -> None:
    small = [run for run in synthetic(0.0) if run.n_params < find_optimum(PLANTED, run.flops, 7).n_params * 0.9]
    both = [*small, *(dataclasses.replace(run, n_params=run.n_params * 1.1, loss=run.loss * 0.99) for run in small)]
    assert all(curve.optimum is None for curve in fit.fit_parabolas(both))


def test_budgets_are_told_apart_but_not_by_rounding() -> None:
    runs = [
        ScalingRun("x", n, 1.0, flops, 2.0) for flops in (1e12, 2e12) for n, flops in ((2, flops * 1.03), (1, flops))
    ]
    assert [[run.n_params for run in group] for group in group_by_budget(runs)] == [[1, 2], [1, 2]]


def test_the_jacobian_is_that_of_the_residuals() -> None:
    N, D, L = (np.log(column) for column in fit.to_columns(synthetic(0.01)))
    x = np.array([3.0, 5.0, 0.1, 0.35, 0.4])
    for i in range(5):
        step = np.zeros(5)
        step[i] = 1e-6
        slope = (fit.residuals(x + step, N, D, L) - fit.residuals(x - step, N, D, L)) / 2e-6
        assert fit.jacobian(x, N, D, L)[:, i] == pytest.approx(slope, rel=1e-4)


def write_run(folder: Path, width: int, loss: float, tokens: int = 2560, state: str = "finished") -> Path:
    """Write a run directory as training leaves it."""
    config = tiny_config(folder, folder / "none.txt", **{"model.n_embd": width, "data.tokenizer": "byte"})
    path = folder / "runs" / f"made-{width}-{loss:.4f}-{tokens}"
    path.mkdir(parents=True)
    (path / "config.json").write_text(to_json(config))
    (path / FILE).write_text(tokenizer_json(ByteTokenizer()))
    rows = [{"step": 0, "tokens": 0, "val_loss": 5.5}, {"step": 20, "tokens": tokens, "val_loss": loss}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    RunDirectory(path).write_status(state)
    return path


def test_a_run_is_read_as_it_was_trained(config: Callable[..., TrainConfig]) -> None:
    """Parameters are those of its model, tokens and loss those of its evaluations."""
    built = config(**{"training.steps": None, "training.flops": 5e7})
    assert train(built) == 0
    (run,) = read_finished_runs(str(Path(built.runs_dir) / "*"))
    chars = len(json.loads((locate_run(built) / FILE).read_text())["chars"])
    model = built.model.with_vocab(chars)
    assert run.n_params == sum(p.numel() for p in GPT(model).parameters()) == parameter_counts(model)["total"]
    assert run.flops >= 5e7 > run.flops - 128 * flops_per_token(model), "the horizon, rounded up to a step"
    assert run.loss < 4


def test_only_finished_runs_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, 16, 2.0)
    write_run(tmp_path, 32, 1.9, state="running")
    assert len(read_finished_runs(str(tmp_path / "runs/*"))) == 1
    assert "made-32-1.9000-2560 isn't finished" in capsys.readouterr().out


def test_too_few_runs_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    wanted = ScalingConfig(runs=str(tmp_path / "runs/*"), out=str(tmp_path / "out"))
    with pytest.raises(BadInput, match="no run directory; train some first"):
        run_scaling(wanted)
    for width in (16, 32, 48):
        write_run(tmp_path, width, 2.0)
    with pytest.raises(BadInput, match="3 finished runs; a fit of five constants needs at least 6"):
        run_scaling(wanted)
    for loss in (2.1, 2.2, 2.3):
        write_run(tmp_path, 16, loss)
    assert not (tmp_path / "out").exists()


def test_sizes_must_differ() -> None:
    same = [dataclasses.replace(run, n_params=1e6) for run in synthetic(0.0)]
    with pytest.raises(BadInput, match="1 different model sizes among 20 runs; needed: at least 3"):
        fit.check_enough_runs(same)


def test_a_study_of_run_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two budgets of four sizes, with losses of a planted law: JSON, picture and tables say where its optima are."""
    monkeypatch.setattr(fit, "STARTS", fit.STARTS[::24])
    shape = tiny_config(tmp_path, tmp_path / "none.txt").model
    law = LawConfig(E=1.0, A=100.0, B=250.0, alpha=0.45, beta=0.5)
    for flops in (2e10, 2e11):
        for width in (16, 32, 48, 96):
            model = shape.model_copy(update={"n_embd": width, "vocab_size": 256})
            tokens = int(flops / flops_per_token(model))
            write_run(tmp_path, width, predict_loss(law, parameter_counts(model)["total"], tokens), tokens)
    out = tmp_path / "out"
    assert run_scaling(ScalingConfig(runs=str(tmp_path / "runs/*"), out=str(out), bootstrap=20)) == 0
    found = json.loads((out / "scaling.json").read_text())
    assert len(found["runs"]) == 8 and len(found["minima"]) == 2 and 0.2 < found["exponent"] < 0.8
    assert found["law"] == pytest.approx(law.model_dump(), rel=0.05)
    low, high = found["next_intervals"]["loss"]
    assert low <= high and found["next"]["flops"] == 10 * max(run["flops"] for run in found["runs"])
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for expected in ("parabola of each budget", "L(N, D) =", "90 % interval", "predicted", "scaling.png"):
        assert expected in shown
    assert run_scaling(ScalingConfig(runs=str(tmp_path / "runs/*"), out=str(out), bootstrap=20, format="json")) == 0
    document = read_strict(capsys.readouterr().out)
    check_document(document, "scaling of runs")
    assert {key: document[key] for key in found} == found and document["files"] == [
        str(out / "scaling.json"),
        str(out / "scaling.png"),
        str(out / "scaling.pdf"),
        str(out / "scaling.svg"),
    ]
    assert [budget["optimum"] for budget in document["budgets"]] == found["minima"]


@pytest.mark.parametrize(("asked", "rows"), [({}, 10), ({"budget": 1e19}, 1), ({"n_params": 400e6}, 1)])
def test_the_published_law_is_a_table(asked: dict[str, Any], rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_scaling(ScalingConfig(**asked)) == 0
    assert capsys.readouterr().out.count("e+") == rows
