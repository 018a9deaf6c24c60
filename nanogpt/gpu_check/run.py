"""`nanogpt doctor gpu=true`: run each part in a fresh process, within a time limit for all parts together."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanogpt import schema
from nanogpt.benchmark.baselines import check_baseline
from nanogpt.benchmark.report import describe_machine
from nanogpt.child_process import ChildFailed, start_child, wait_for_child
from nanogpt.config import DoctorConfig
from nanogpt.console import print_text
from nanogpt.device import find_device, set_up_device
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.gpu_check.findings import JSON, MARKDOWN, Judgement, PartResult, summarize, summarize_as_dict, write_files
from nanogpt.gpu_check.parts import PartSpec, list_parts
from nanogpt.gpu_check.scale import bench_config
from nanogpt.json_output import print_result
from nanogpt.output_paths import check_output_folder
from nanogpt.redaction import redact

USUAL = 8 * 60.0  # seconds of the whole check, to which the limits of the parts refer
MOST_AT_ONCE = 4  # parts that run in parallel, on at least four cores each


def check_gpu(config: DoctorConfig) -> int:
    """Run every part, print and write the findings. Return 0 if all passed, else 5.

    Raises BadEnvironment without a GPU; device=cpu rehearses the check with tiny models.
    """
    device = find_device(config.device, "device")
    if device.type != "cuda" and config.device != "cpu":
        raise BadEnvironment("gpu=true: no CUDA device here; device=cpu rehearses the check with tiny models")
    check_output_folder("out", config.out)
    bench = bench_config(config, device, "gpt2")
    for program in bench.against:
        check_baseline(program, bench.model)
    machine = describe_machine(set_up_device(bench.hardware))
    header = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "device": str(device)}
    parts: list[PartResult] = []
    folder = Path(config.out)
    for part in run_parts(config, list_parts()):
        parts.append(part)
        for row in part.rows:
            allowed = f" ({row.allowed})" if row.allowed else ""
            print_text(f"{row.verdict:<5}{part.name:<13}{row.name}: {row.found}{allowed}")
        write_files(folder, header, parts)
    found = summarize_as_dict(header, parts)
    files = f"{folder / JSON}\n{folder / MARKDOWN}"
    print_result(config.format, found, lambda _: print_text(f"\n{summarize(parts)}\n\n{files}"))
    return BadEnvironment.exit_code if any(part.failed for part in parts) else 0


def run_parts(config: DoctorConfig, tasks: Mapping[str, PartSpec]) -> Iterator[PartResult]:
    """Yield the results of the parts: first those that are not timed, several in parallel, then the others."""
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
    """Run a part in a fresh process, which is ended after `limit` seconds. A crash is a finding."""
    if limit <= 0:
        return [Judgement(name=name, verdict="FAIL", found="not started: the time for the whole check was over")]
    try:
        child = start_child("nanogpt.gpu_check.parts", name, message=schema.to_json(config))
        return [Judgement.model_validate(row) for row in json.loads(wait_for_child(child, limit))]
    except subprocess.TimeoutExpired:
        found = f"took more than {limit:.0f} s"
    except ChildFailed as failure:
        ended = f"ended by signal {-failure.code}: " if failure.code < 0 else ""
        found = redact(one_line(f"{ended}{failure}", 300))
    return [Judgement(name=name, verdict="FAIL", found=found)]
