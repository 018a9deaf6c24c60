"""The check of a GPU: order, verdicts, limits and tables; what it finds about numbers is tested on a GPU by itself."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from nanogpt.benchmark.measurement import OURS, Timing
from nanogpt.config import DoctorConfig
from nanogpt.config.commands import CheckName
from nanogpt.device import Compute
from nanogpt.estimates.flops import flops_per_token
from nanogpt.gpu_check import invariants, run, speed
from nanogpt.gpu_check.findings import JSON, MARKDOWN, Judgement, PartResult, judge, summarize, write_files
from nanogpt.gpu_check.parts import PartSpec, list_parts
from nanogpt.gpu_check.scale import REAL, bench_config
from tests.commands import command

ROOT = Path(__file__).parents[2]
CPU = DoctorConfig(gpu=True, device="cpu")
H100 = Compute(torch.device("cpu"), "bf16", "NVIDIA H100 80GB HBM3")


def task(limit: float = 60.0, timed: bool = True) -> PartSpec:
    return PartSpec(lambda _: [], limit, "look", timed)


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = command("-m", "cli", "doctor", "gpu=true", folder=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 5 and done.stdout == ""
    expected = "error: gpu=true: no CUDA device here; device=cpu rehearses the check with tiny models"
    assert done.stderr.splitlines() == [expected]
    assert not list(tmp_path.iterdir())


def test_keys_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for words in (["gpu=true", "checks=[disk]"], ["against=/nowhere"], ["gpu=true", "device=cpu", "against=/nowhere"]):
        done = command("-m", "cli", "doctor", *words, folder=tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_cheap_parts_come_before_benchmarks_and_all_invariants_are_parts() -> None:
    timed = {name for name, part in list_parts().items() if part.timed}
    assert timed == {"gpt2", "gpt2_medium", "kernels", "generation", "evaluation"}
    untimed = {"logits", "cache", "accumulation", "ranks", "resume", "tests", "compiled", "graphs", "fp16", "fp8"}
    assert untimed <= list_parts().keys() - timed
    assert all(part.remedy for part in list_parts().values())
    assert {"logits", "cache"} <= set(get_args(CheckName))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("raise SystemExit('error: no memory')", "no memory"),
        ("import os; os.abort()", "ended by signal 6: no message"),
        ("import time; time.sleep(60)", "took more than 1 s"),
        ("raise ZeroDivisionError('by zero')", "ZeroDivisionError: by zero"),
    ],
)
def test_a_part_that_crashes_or_hangs_is_a_finding(code: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(run.subprocess, "Popen", lambda _, **more: real([sys.executable, "-c", code], **more))  # type: ignore[reportUnknownLambdaType]
    (row,) = run.run_part("compiled", CPU, 1.0 if "sleep" in code else 60.0)
    assert (row.verdict, row.found) == ("FAIL", found)


def test_a_part_runs_in_its_own_process() -> None:
    (row,) = run.run_part("fp16", CPU, 600.0)
    assert row.verdict == "skip" and "needs a CUDA device" in row.found


def test_a_crash_does_not_end_the_rest_and_time_that_is_over_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def recorded(name: str, config: DoctorConfig, limit: float) -> list[Judgement]:
        limits.append(limit)
        time.sleep(0.2)
        return [judge(name, name != "a", "")]

    monkeypatch.setattr(run, "run_part", recorded)
    tasks = {"b": task(10), "c": task(), "a": task(timed=False)}
    parts = list(run.run_parts(DoctorConfig(gpu=True, device="cpu", limit_s=48), tasks))
    assert [(part.name, part.failed) for part in parts] == [("a", True), ("b", False), ("c", False)]
    assert limits == [6.0, 1.0, 6.0]  # a tenth of the usual time
    limits.clear()
    list(run.run_parts(DoctorConfig(gpu=True, device="cpu", limit_s=1), {"a": task(4000), "b": task(4000)}))
    assert 0.9 < limits[0] <= 1 and limits[1] <= 0.8
    monkeypatch.undo()
    assert run.run_part("compiled", CPU, 0.0)[0].verdict == "FAIL"


def test_files_have_every_row_and_what_to_do(tmp_path: Path) -> None:
    rows = (judge("step", False, "9 ms", "at least 10 ms", seconds=0.009), judge("MFU", True, "40 %"))
    parts = [
        PartResult(name="gpt2", seconds=1.0, rows=rows, remedy="look at nvidia-smi"),
        PartResult(name="fp8", seconds=0, rows=()),
    ]
    write_files(tmp_path, {"date": "2026-01-01", "machine": "H200"}, parts)
    content = json.loads((tmp_path / JSON).read_text())
    assert content["passed"] is False and content["parts"][0]["rows"][0]["numbers"] == {"seconds": 0.009}
    text = (tmp_path / MARKDOWN).read_text()
    assert "| gpt2 | step | FAIL | 9 ms | at least 10 ms |" in text and "| gpt2 | MFU | pass | 40 % |  |" in text
    assert "1 of 2 parts failed" in text and "gpt2: look at nvidia-smi" in text
    assert summarize(parts[1:]) == "all 1 parts passed"


def test_a_step_is_judged_by_formula() -> None:
    bench = bench_config(DoctorConfig(gpu=True, device="cpu"), torch.device("cuda"), "gpt2")
    assert bench.model.n_embd == REAL.models["gpt2"]["n_embd"] and bench.grad_accum() == 2
    ideal = flops_per_token(bench.model) * bench.training.batch_tokens / 989.4e12
    for factor, verdicts in ((2.5, ["pass", "pass"]), (0.9, ["FAIL", "FAIL"]), (5.0, ["pass", "FAIL"])):
        rows = speed.judge_step(bench, H100, factor * ideal)
        assert [row.verdict for row in rows] == verdicts
        assert rows[1].numbers["mfu"] == pytest.approx(1 / factor)
        assert rows[0].numbers["products_floor"] == pytest.approx(ideal)


def test_nanogpt_is_judged_pair_by_pair() -> None:
    theirs = "nanogpt:/somewhere"
    (row,) = speed.judge_ratio({OURS: [1.0, 2.0], theirs: [1.1, 2.2]})
    assert row.verdict == "pass" and row.numbers["ratio"] == pytest.approx(1.1)
    assert speed.judge_ratio({OURS: [1.0, 1.0], theirs: [0.9, 0.9]})[0].verdict == "FAIL"
    assert speed.judge_ratio({OURS: [1.0]})[0].verdict == "skip"


def test_phases_and_first_steps_are_described() -> None:
    run_of = {"memory": 1, "parameters": 1, "phases": {"forward": 0.25, "backward": 0.75}}
    runs = [Timing(seconds=(1.0,), first=first, **run_of) for first in (31.0, 3.0)]  # type: ignore[arg-type]
    phases, first = speed.describe_phases({OURS: runs})
    assert phases.found == "forward 25 %, backward 75 %" and first.found == "30 s, then 2 s"


def test_a_device_that_computes_nothing_fails() -> None:
    assert invariants.check_learning([0.0])[0].verdict == "FAIL"
    assert invariants.check_learning([4.6])[0].verdict == "pass"
    assert invariants.judge_difference("x", float("nan"), 1.0, "losses").verdict == "FAIL"
