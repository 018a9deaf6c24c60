"""Benchmarks with verdicts: training against nanoGPT, kernels, generation, evaluation.

A time below its lower bound is a FAIL too: the clock, the formula or the device is wrong.
"""

import statistics

import torch
from torch.profiler import record_function

from nanogpt.benchmark.baselines import check_baseline
from nanogpt.benchmark.comparison import Measurements, measure_in_turn
from nanogpt.benchmark.kernels import record_profile, top_kernels
from nanogpt.benchmark.measurement import OURS, Timing, Workload
from nanogpt.benchmark.ours import build_trainer, random_batches
from nanogpt.benchmark.roofline import compute_floors, find_memory_peak
from nanogpt.benchmark.timing import choose_synchronize, format_digits, format_range, time_call
from nanogpt.config import BenchConfig, DoctorConfig
from nanogpt.device import Compute, find_device, set_up_device
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.estimates.flops import flops_per_token, parameter_counts
from nanogpt.estimates.gpu_specs import compute_mfu
from nanogpt.estimates.memory import estimate_memory
from nanogpt.evaluation.scoring import Request, score
from nanogpt.formatting import format_count
from nanogpt.gpu_check.findings import Judgement, judge
from nanogpt.gpu_check.scale import bench_config, choose_sizes
from nanogpt.model.gpt import GPT

LEAST_MFU = 0.25  # a lower MFU means no fused attention, no compiler or a throttled device
LEAST_RATIO = 0.95  # nanoGPT's time over ours
MOST_MEMORY = 1.1  # peak memory over the estimate
NEW_SHAPE = 0.1  # seconds by which the first batch of a new shape may exceed the second


def prepare(config: DoctorConfig, name: str) -> tuple[BenchConfig, Compute]:
    bench = bench_config(config, find_device(config.device, "device"), name)
    for program in bench.against:
        check_baseline(program, bench.model)
    return bench, set_up_device(bench.hardware)


def check_training(config: DoctorConfig, name: str) -> list[Judgement]:
    """Compare training steps with nanoGPT's on one random batch, in fresh processes that alternate."""
    bench, compute = prepare(config, name)
    micro = bench.micro_batch_size()

    def work(program: str) -> Workload:
        return Workload(program=program, what="training", batch=micro, config=bench)

    found = measure_in_turn((OURS, *bench.checkouts), bench.bench.rounds, work)
    medians = {program: [statistics.median(run.seconds) for run in runs] for program, runs in found.items()}
    step = statistics.median(medians[OURS])
    return [
        *judge_step(bench, compute, step),
        *judge_ratio(medians),
        *judge_memory(bench, compute, found[OURS]),
        *describe_phases(found),
    ]


def judge_step(bench: BenchConfig, compute: Compute, step: float) -> list[Judgement]:
    """Compare a step with its lower bounds, and the MFU, if the peak is known, with that of a healthy device."""
    floor = compute_floors(bench, compute)
    least = max(floor.products, floor.memory)
    allowed = f"at least {format_digits(1e3 * least)} ms, the larger of {format_digits(1e3 * floor.products)} and "
    allowed += f"{format_digits(1e3 * floor.memory)}"
    tokens = bench.training.batch_tokens
    rate = f"{format_digits(1e3 * step)} ms, {format_count(tokens / step)} tokens a second"
    numbers = {"seconds": step, "products_floor": floor.products, "memory_floor": floor.memory}
    rows = [judge(f"step of {tokens:,} tokens", step >= least, rate, allowed, **numbers)]
    mfu = compute_mfu(flops_per_token(bench.model) * tokens / step, compute.name, compute.precision)
    if mfu is None:
        return [*rows, Judgement(name="MFU", verdict="info", found=f"the peak of {compute.name} is not known")]
    return [*rows, judge("MFU", LEAST_MFU <= mfu <= 1, f"{100 * mfu:.1f} %", f"{LEAST_MFU:.0%} to 100 %", mfu=mfu)]


def judge_ratio(medians: dict[str, list[float]]) -> list[Judgement]:
    """Compare the time with nanoGPT's, round by round."""
    rows: list[Judgement] = []
    for program, runs in medians.items():
        if program != OURS:
            ratios = [theirs / ours for ours, theirs in zip(medians[OURS], runs, strict=True)]
            ratio = statistics.median(ratios)
            found = f"{format_range(ratios, ' x')} our time"
            rows.append(judge("nanoGPT", ratio >= LEAST_RATIO, found, f"at least {LEAST_RATIO} x", ratio=ratio))
    return rows or [Judgement(name="nanoGPT", verdict="skip", found="against=PATH compares with a checkout")]


def judge_memory(bench: BenchConfig, compute: Compute, runs: list[Timing]) -> list[Judgement]:
    peak, gpu = max(run.memory for run in runs), compute.device.type == "cuda"
    expected = estimate_memory(bench, bench.model, compute.precision, bench.micro_batch_size(), gpu).total
    if not gpu:
        return [Judgement(name="peak memory", verdict="info", found=f"{format_count(peak, 'G')}B of the process")]
    allowed = f"at most {MOST_MEMORY} x the estimate of {format_count(expected, 'G')}B"
    numbers = {"bytes": float(peak), "estimate": float(expected)}
    return [judge("peak memory", 0 < peak <= MOST_MEMORY * expected, f"{format_count(peak, 'G')}B", allowed, **numbers)]


def describe_phases(found: Measurements) -> list[Judgement]:
    """Describe the phases of a step, and how much longer the first step takes, with an empty and a filled cache."""
    rows: list[Judgement] = []
    for program, runs in found.items():
        more = [run.first - statistics.median(run.seconds) for run in runs]
        phases = {name: statistics.median(run.phases[name] for run in runs) for name in runs[0].phases}
        whole = sum(phases.values()) or 1.0
        text = ", ".join(f"{name} {100 * t / whole:.0f} %" for name, t in phases.items())
        ours = "ours" if program == OURS else "nanoGPT"
        rows.append(Judgement(name=f"phases, {ours}", verdict="info", found=text, numbers=phases))
        first = " s, then ".join(format_digits(seconds) for seconds in more)
        name = f"first step less a steady one, {ours}"
        rows.append(
            Judgement(name=name, verdict="info", found=f"{first} s", numbers={"cold": more[0], "warm": more[-1]})
        )
    return rows


def check_kernels(config: DoctorConfig) -> list[Judgement]:
    """Profile a training step of gpt2 and list its costliest kernels; fail if no kernel was recorded."""
    bench, compute = prepare(config, "gpt2")
    workload = Workload(program=OURS, what="training", batch=bench.micro_batch_size(), config=bench)
    _, step = build_trainer(workload, compute, random_batches(workload, compute.device))
    rows = top_kernels(record_profile(compute, lambda: step(record_function)), compute.device.type == "cuda")
    found = [
        Judgement(name=name, verdict="info", found=f"{share}, {calls} calls, {ms} ms")
        for name, share, calls, ms in rows
    ]
    return [judge("kernels recorded", bool(found), str(len(found)), "at least 1"), *found]


def check_generation(config: DoctorConfig) -> list[Judgement]:
    """Generate text; the lower bound of a token is the time to read all weights once."""
    bench, compute = prepare(config, "gpt2")
    bench = bench.model_copy(update={"against": ()})
    size = 4 if compute.precision == "fp32" else 2
    least = size * parameter_counts(bench.model)["total"] / find_memory_peak(compute).rate
    rows: list[Judgement] = []
    for batch in bench.bench.batch_sizes:

        def work(program: str, batch: int = batch) -> Workload:
            return Workload(program=program, what="generation", batch=batch, config=bench)

        (run,) = measure_in_turn((OURS,), 1, work)[OURS]
        token = run.seconds[0] / bench.bench.new_tokens
        text = f"{format_digits(1e3 * token)} ms a token, {format_count(batch / token)} tokens a second"
        passed = compute.device.type == "cpu" or token >= least
        rows.append(judge(f"batch {batch}", passed, text, f"at least {format_digits(1e3 * least)} ms", seconds=token))
    return rows


def check_evaluation(config: DoctorConfig) -> list[Judgement]:
    """Check that the first batch of a new shape takes hardly longer to score than the second."""
    bench, compute = prepare(config, "gpt2")
    model, synchronize = GPT(bench.model).eval().to(compute.device), choose_synchronize(compute.device)
    more: list[float] = []
    for length in choose_sizes(compute.device).lengths:
        document = torch.randint(bench.model.vocab_size or 0, (length,)).tolist()
        requests = [Request(document[:4], [document[4:]])] * 4

        def score_batch(requests: list[Request] = requests) -> None:
            score(model, requests, compute, ProcessGroup())
            synchronize()

        first, again = time_call(score_batch), time_call(score_batch)
        more.append(first - again)
    more = more[1:]  # the very first one loads libraries
    typical, found = statistics.median(more), f"{format_range([1e3 * value for value in more], ' ms')}"
    name = "first batch of a new shape less the second"
    return [judge(name, typical <= NEW_SHAPE, found, f"at most {1e3 * NEW_SHAPE:.0f} ms", seconds=typical)]
