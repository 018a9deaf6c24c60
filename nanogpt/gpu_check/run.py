"""`nanogpt doctor gpu=true`: run all parts, one process each, within a limit for all of them together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nanogpt
from nanogpt import schema
from nanogpt.benchmark.baselines import check_baseline
from nanogpt.benchmark.report import describe_machine
from nanogpt.config import DoctorConfig
from nanogpt.console import say
from nanogpt.device import find_device, set_up
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.gpu_check.findings import JSON, MARKDOWN, Judgement, PartResult, summarize, write_files
from nanogpt.gpu_check.parts import PartSpec, list_parts
from nanogpt.gpu_check.scale import bench_config
from nanogpt.output_paths import check_output_folder
from nanogpt.redaction import redact

USUAL = 8 * 60.0  # seconds of the whole check, for which the limits of the parts are made
MOST_AT_ONCE = 4  # parts that are not timed, where there are four cores for each


def check_gpu(config: DoctorConfig) -> int:
    """Run every part, show and write what they find. Returns 0 where all passed, else 5. Raises BadEnvironment where
    there is no GPU; device=cpu rehearses the check itself with tiny models.
    """
    device = find_device(config.device, "device")
    if device.type != "cuda" and config.device != "cpu":
        raise BadEnvironment("gpu=true: no CUDA device here; device=cpu rehearses the check with tiny models")
    check_output_folder("out", config.out)
    bench = bench_config(config, device, "gpt2")
    for program in bench.against:
        check_baseline(program, bench.model)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(set_up(bench.hardware)),
        "device": str(device),
    }
    parts: list[PartResult] = []
    folder = Path(config.out)
    for part in run_parts(config, list_parts()):
        parts.append(part)
        for row in part.rows:
            allowed = f" ({row.allowed})" if row.allowed else ""
            say(f"{row.verdict:<5}{part.name:<13}{row.name}: {row.found}{allowed}")
        write_files(folder, about, parts)
    say(f"\n{summarize(parts)}\n\n{folder / JSON}\n{folder / MARKDOWN}")
    return BadEnvironment.exit_code if any(part.failed for part in parts) else 0


def run_parts(config: DoctorConfig, tasks: Mapping[str, PartSpec]) -> Iterator[PartResult]:
    """Yield what each part found: first several at once of those that are not timed, then the others, one by one."""
    end = time.monotonic() + config.limit_s

    def run(name: str) -> PartResult:
        started = time.monotonic()
        limit = tasks[name].limit * config.limit_s / USUAL
        rows = run_part(name, config, min(limit, end - started))
        return PartResult(name=name, seconds=time.monotonic() - started, rows=tuple(rows), remedy=tasks[name].remedy)

    with ThreadPoolExecutor(max(1, min(MOST_AT_ONCE, (os.cpu_count() or 1) // 4))) as pool:
        yield from pool.map(run, [name for name, task in tasks.items() if not task.timed])
    yield from map(run, [name for name, task in tasks.items() if task.timed])


def run_part(name: str, config: DoctorConfig, limit: float) -> list[Judgement]:
    """Run a part in a process and session of its own, which are ended at the limit. A crash is a finding."""
    if limit <= 0:
        return [Judgement(name=name, verdict="FAIL", found="not started: the time for the whole check was over")]
    root = str(Path(nanogpt.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "nanogpt.gpu_check.child", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(schema.to_json(config), timeout=limit)
        except subprocess.TimeoutExpired:
            return [Judgement(name=name, verdict="FAIL", found=f"took more than {limit:.0f} s")]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode == 0:
        return [Judgement.model_validate(row) for row in json.loads(out.splitlines()[-1])]
    return [Judgement(name=name, verdict="FAIL", found=describe_end(child.returncode, err))]


def describe_end(code: int, err: str) -> str:
    """Return the last line of a process that failed, without the values of variables that name secrets."""
    lines = err.strip().splitlines() or ["no message"]
    ended = f"ended by signal {-code}: " if code < 0 else ""
    return redact(one_line(f"{ended}{lines[-1].removeprefix('error: ').strip()}", 300))
