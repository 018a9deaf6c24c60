"""The parts of the GPU check, the cheap and decisive ones first. As a program: the process of one part."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from nanogpt import schema
from nanogpt.child_process import answer
from nanogpt.config import DoctorConfig
from nanogpt.doctor import invariants as doctor
from nanogpt.doctor import machine
from nanogpt.doctor.finding import Check
from nanogpt.errors import one_line
from nanogpt.gpu_check import invariants, speed
from nanogpt.gpu_check.findings import Judgement

TESTS = Path(__file__).parents[2] / "tests"
REPORT = "report it with gpu-check.json"


@dataclass(frozen=True)
class PartSpec:
    """A part of the check."""

    call: Callable[[DoctorConfig], list[Judgement]]
    limit: float
    """Seconds after which its process is killed."""
    remedy: str
    """The advice that is printed after a failure."""
    timed: bool = False
    """A benchmark: no other part may run at the same time."""


def run_tests(_: DoctorConfig) -> list[Judgement]:
    """Run the tests marked `gpu` of this checkout."""
    files: list[Path] = []
    if (TESTS.parent / "pyproject.toml").is_file():  # installed from a wheel, `tests` would be another package's
        files = [path for path in sorted(TESTS.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8")]
    if not files or find_spec("pytest") is None:
        missing = "needs a checkout and pytest: pip install -e '.[dev]'"
        return [Judgement(name="pytest -m gpu", verdict="skip", found=missing)]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    found = f"exit code {done.returncode}; {one_line(lines[-1], 200)}"
    rows = [Judgement(name="pytest -m gpu", verdict="FAIL" if done.returncode else "pass", found=found)]
    return [*rows, *(Judgement(name="test", verdict="FAIL", found=one_line(line, 200)) for line in failed)]


def run_doctor_check(check: Check, config: DoctorConfig) -> list[Judgement]:
    """Run a check of `nanogpt doctor`. Raises what the check raises."""
    found = check.call(config)
    verdict = {"ok": "pass", "note": "info", "failed": "FAIL"}[found.state]
    return [Judgement(name="as nanogpt doctor", verdict=verdict, found=found.what)]  # type: ignore[arg-type]


def list_parts() -> dict[str, PartSpec]:
    """Return the parts by name."""
    tests = "python -m pytest -m gpu names the test; device=cpu shows whether the code or the device is wrong"
    slow = f"nothing else may run on the device (nvidia-smi); then {REPORT}"
    checks = {"device": machine.CHECKS["device"], "compile": machine.CHECKS["compile"], **doctor.CHECKS}
    return {
        **{name: PartSpec(partial(run_doctor_check, check), 60, check.remedy) for name, check in checks.items()},
        "compiled": PartSpec(invariants.check_compiled, 90, f"hardware.compile=false trains without it; {REPORT}"),
        "graphs": PartSpec(invariants.check_graphs, 90, f"hardware.compile_mode=default trains without it; {REPORT}"),
        "fp16": PartSpec(invariants.check_fp16, 60, f"hardware.precision=bf16 trains without it; {REPORT}"),
        "fp8": PartSpec(invariants.check_fp8, 90, f"hardware.fp8=false trains without it; {REPORT}"),
        "tests": PartSpec(run_tests, 240, tests),
        "gpt2": PartSpec(partial(speed.check_training, name="gpt2"), 200, slow, timed=True),
        "generation": PartSpec(speed.check_generation, 90, slow, timed=True),
        "evaluation": PartSpec(
            speed.check_evaluation, 60, f"device=cpu evaluates without the GPU; {REPORT}", timed=True
        ),
        "kernels": PartSpec(speed.check_kernels, 90, f"CUPTI may need more rights; {REPORT}", timed=True),
        "gpt2_medium": PartSpec(partial(speed.check_training, name="gpt2_medium"), 300, slow, timed=True),
    }


def run_part_here(name: str, message: str) -> str:
    """Return the findings of a part, as JSON; `message` is a DoctorConfig as JSON."""
    rows = list_parts()[name].call(schema.from_dict(DoctorConfig, json.loads(message)))
    return json.dumps([row.model_dump() for row in rows])


if __name__ == "__main__":
    sys.exit(answer(partial(run_part_here, sys.argv[1])))
