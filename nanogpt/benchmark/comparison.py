"""Compare programs on the same work, in fresh processes that alternate (A B A B …), so that noise affects all."""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nanogpt.benchmark.baselines import check_baseline, checkout_path
from nanogpt.benchmark.measurement import OURS, Timing, Workload, measure, with_vocabulary
from nanogpt.benchmark.roofline import compute_floors
from nanogpt.benchmark.timing import MarkdownTable, format_digits, format_range
from nanogpt.benchmark.training import describe_flops
from nanogpt.config import BenchConfig
from nanogpt.data.prepare import prepare_if_small
from nanogpt.device import Compute
from nanogpt.errors import BadInput
from nanogpt.formatting import format_count
from nanogpt.training.validation import expected_model

FEW_IDS = 64  # vocabulary size at which logits take next to no memory
LARGE_LOGITS = 256 * 2**20  # bytes from which logits stand out from the noise of a process's memory

Measurements = dict[str, list[Timing]]
"""{program: a Timing of each round}, ours first."""


def check_baselines(config: BenchConfig) -> None:
    """Raise BadEnvironment or BadInput if a program to compare with is missing or can't build the model."""
    for program in config.against:
        check_baseline(program, config.model)


def measure_in_turn(programs: Sequence[str], rounds: int, work: Callable[[str], Workload]) -> Measurements:
    """Measure all programs `rounds` times. Raises BadInput if a model has other parameters than ours.

    Each program has a cache of torch.compile that is empty in the first round and kept for the others.
    """
    found: Measurements = {program: [] for program in programs}
    with tempfile.TemporaryDirectory(prefix="nanogpt-bench-") as folder:
        for number, (index, program) in itertools.product(range(1, rounds + 1), enumerate(programs)):
            workload = work(program)
            batch = f", batch {workload.batch}" if workload.what == "generation" else ""
            print(f"{workload.what}{batch}, round {number} of {rounds}: {program}", file=sys.stderr, flush=True)
            found[program].append(measure(workload, Path(folder) / str(index)))
            theirs, ours = found[program][0].parameters, found[OURS][0].parameters
            if theirs != ours:
                raise BadInput(f"against={program}: its model has {theirs:,} parameters, ours {ours:,}")
    return found


def compare_training(config: BenchConfig, compute: Compute) -> MarkdownTable:
    """Compare training steps on one random batch; with a large vocabulary also the memory of its logits."""
    programs = (OURS, *config.checkouts)
    config = with_known_vocabulary(config)
    micro = config.micro_batch_size()

    def work(program: str) -> Workload:
        return Workload(program=program, what="training", batch=micro, config=config)

    found = measure_in_turn(programs, config.bench.rounds, work)
    medians = {program: [statistics.median(run.seconds) for run in runs] for program, runs in found.items()}
    shape = f"{config.grad_accum()} x {micro} x {config.model.block_size}"
    given = "" if config.hardware.micro_batch_size != "auto" else " (train.py uses the largest that fits)"
    title = f"training, {shape}{given} tokens, vocabulary {config.model.padded_vocab_size:,}, {compute.precision}"
    typical = [statistics.median(runs) for runs in medians.values()]
    rates = [config.training.batch_tokens / seconds for seconds in typical]
    rows = [
        ("ms a step", *(format_range([1e3 * value for value in runs]) for runs in medians.values())),
        ("tokens a second", *map(format_count, rates)),
        ratio_row(medians),
        ("achieved", *(describe_flops(rate, config.model, compute) for rate in rates)),
        *compute_floors(config, compute).rows(*typical),
        *phase_rows(found),
        *(compiling_rows(found) if compute.compiles else []),
        memory_row(found),
    ]
    if 4 * micro * config.model.block_size * config.model.padded_vocab_size >= LARGE_LOGITS:
        rows += measure_logits(config, found)
    return MarkdownTable((title, *map(program_name, programs)), rows)


def phase_rows(found: Measurements) -> list[tuple[str, ...]]:
    """Return each phase's time and share, in steps that synchronize the device after each phase."""
    rows: list[tuple[str, ...]] = []
    for name in found[OURS][0].phases:
        times = [statistics.median(run.phases.get(name, 0.0) for run in runs) for runs in found.values()]
        wholes = [statistics.median(sum(run.phases.values()) for run in runs) for runs in found.values()]
        pairs = zip(times, wholes, strict=True)
        cells = [f"{format_digits(1e3 * time)} ms, {100 * time / whole:.1f} %" for time, whole in pairs]
        rows.append((f"of a step, each phase waited for: {name}", *cells))
    return rows


def compiling_rows(found: Measurements) -> list[tuple[str, ...]]:
    """Return how much longer the first step takes than later ones, with an empty and with a filled compile cache."""
    more = [[run.first - statistics.median(run.seconds) for run in runs] for runs in found.values()]
    rows = [("compiling: s of the first step less a steady one", *(format_digits(runs[0]) for runs in more))]
    again = [runs[1:] for runs in more]
    return [*rows, ("the same once it is compiled", *map(format_range, again))] if all(again) else rows


def measure_logits(config: BenchConfig, found: Measurements) -> list[tuple[str, ...]]:
    """Return the memory of the logits: the peak, less that with a tiny vocabulary, less the embedding's state."""
    model, micro = config.model, config.micro_batch_size()
    few = with_vocabulary(config, FEW_IDS)
    few = few.model_copy(update={"bench": config.bench.model_copy(update={"steps": 1, "warmup": 1})})
    state = 4 * 4 * model.n_embd * (model.padded_vocab_size - few.model.padded_vocab_size)
    shares: dict[str, float] = {}
    for program, runs in found.items():
        without = measure(Workload(program=program, what="training", batch=micro, config=few)).memory
        shares[program] = max(0.0, statistics.median(run.memory for run in runs) - without - state)
    whole = format_count(4.0 * micro * model.block_size * model.padded_vocab_size, "G")
    name = f"of which logits (whole, in fp32: {whole}B): less the peak with {FEW_IDS} ids, less the embedding's state"
    ours = shares.pop(OURS)
    cut = [f"{format_count(share, 'G')}B, {share / max(ours, 1.0):.3g} x ours" for share in shares.values()]
    return [(name, f"{format_count(ours, 'G')}B", *cut)]


def compare_generation(config: BenchConfig, compute: Compute) -> list[MarkdownTable]:
    """Return a table for each batch size: rate, time to the first token, memory."""
    programs = (OURS, *config.against)
    config = with_known_vocabulary(config)
    settings = config.bench
    tables: list[MarkdownTable] = []
    for batch in settings.batch_sizes:

        def work(program: str, batch: int = batch) -> Workload:
            return Workload(program=program, what="generation", batch=batch, config=config)

        found = measure_in_turn(programs, settings.rounds, work)
        seconds = {program: [run.seconds[0] for run in runs] for program, runs in found.items()}
        rates = [[batch * settings.new_tokens / value for value in runs] for runs in seconds.values()]
        each = [[1e3 * value / settings.new_tokens for value in runs] for runs in seconds.values()]
        title = f"generation, batch {batch}, {settings.new_tokens} new tokens after {settings.prompt_tokens}"
        rows = [
            ("tokens a second", *(format_range(values) for values in rates)),
            ("ms a token of every text", *(format_range(values) for values in each)),
            *([ratio_row(seconds)] if config.against else []),
            ("ms to the first token", *(format_range([1e3 * run.first for run in runs]) for runs in found.values())),
            memory_row(found),
        ]
        tables.append(MarkdownTable((f"{title}, {compute.precision} weights", *map(program_name, programs)), rows))
    return tables


def ratio_row(seconds: dict[str, list[float]]) -> tuple[str, ...]:
    """Return the time of the other programs over ours, round by round."""
    ours = seconds[OURS]
    pairs = [[b / a for a, b in zip(ours, runs, strict=True)] for program, runs in seconds.items() if program != OURS]
    return ("time against ours, pair by pair", "1 x", *(format_range(values, " x") for values in pairs))


def memory_row(found: Measurements) -> tuple[str, ...]:
    peaks = [statistics.median(run.memory for run in runs) for runs in found.values()]
    return ("peak memory", *(f"{format_count(peak, 'G')}B" for peak in peaks))


def program_name(program: str) -> str:
    """Return a program's name in a table; of a checkout, its folder."""
    return checkout_path(program).name if ":" in program else program


def with_known_vocabulary(config: BenchConfig) -> BenchConfig:
    """Return the config with its model's vocabulary size. Prepares the data if nothing else determines the size."""
    model, sure = expected_model(config)
    return with_vocabulary(config, model.vocab_size if sure else prepare_if_small(config.data).vocab_size)
