"""Table of all commands: name, config, and the function that runs it."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from cli.argv import collect_sides, collect_targets, split_search_path
from cli.config_files import search_in
from cli.entry import dispatch, exit_on_error
from cli.launcher_config import LaunchConfig
from nanogpt.config import (
    AbConfig,
    BenchConfig,
    CompareConfig,
    CoordinatesConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    GcConfig,
    ListConfig,
    NextConfig,
    PrepareConfig,
    ReportConfig,
    SampleConfig,
    ScalingConfig,
    ServeConfig,
    SizingConfig,
    SyncConfig,
    TrainConfig,
    WatchConfig,
)
from nanogpt.errors import BadInput, hint, one_line
from nanogpt.schema import ConfigModel


@dataclass(frozen=True)
class Command:
    """One command of `nanogpt`."""

    group: str
    """Heading in the list of commands."""
    summary: str
    config: type[ConfigModel]
    function: str
    """`module:function`, imported when the command runs. Job commands take (command, words), all others a config."""
    targets: str | None = None
    """Key that the words without '=' set."""
    sweep: str | None = None
    """`module:function` that runs the points of `-m`; None: run them one after the other."""
    script: str | None = None
    """Script beside conf/ that runs this command."""

    def collect_words(self, words: list[str]) -> list[str]:
        """Return the words with those that are no settings of this command as overrides. Raises BadInput."""
        if self.targets == "sides":
            return collect_sides(words, self.config)
        return collect_targets(words, self.targets) if self.targets else words


MODEL, RUNS, JOBS, SIZES = "Train and use a model", "Studies and runs", "Jobs", "Before training"


def job(summary: str) -> Command:
    """Return a job command."""
    return Command(JOBS, summary, LaunchConfig, "launch.dispatch:run_job_command")


def runs_command(summary: str, config: type[ConfigModel], function: str) -> Command:
    """Return a command whose words without '=' name studies and runs."""
    return Command(RUNS, summary, config, function, targets="targets")


TRAIN = ("cli.actions:train", None, "launch.dispatch:run_training_sweep", "train.py")
COMMANDS = {
    "train": Command(MODEL, "train or continue a run; with -m, run a sweep", TrainConfig, *TRAIN),
    "prepare": Command(MODEL, "tokenize data", PrepareConfig, "nanogpt.data.prepare:prepare_data", script="prepare.py"),
    "sample": Command(MODEL, "generate text", SampleConfig, "nanogpt.generation.command:sample", script="sample.py"),
    "serve": Command(MODEL, "answer OpenAI's API over HTTP", ServeConfig, "nanogpt.serving.command:serve"),
    "evaluate": Command(MODEL, "loss and benchmarks", EvaluateConfig, "cli.actions:evaluate", script="evaluate.py"),
    "export": Command(MODEL, "write weights for transformers", ExportConfig, "nanogpt.interop.export:export_model"),
    "bench": Command(MODEL, "measure speed, memory", BenchConfig, "nanogpt.benchmark.report:bench", script="bench.py"),
    "doctor": Command(MODEL, "check this machine and the code on it", DoctorConfig, "cli.actions:run_doctor"),
    "list": runs_command("all runs: state, progress, loss", ListConfig, "experiments.list_runs:list_runs"),
    "watch": runs_command("a live table of runs", WatchConfig, "experiments.list_runs:watch"),
    "report": runs_command("ranking, curves and plots of a study", ReportConfig, "experiments.report:report"),
    "compare": runs_command("what differs between runs", CompareConfig, "experiments.compare:compare"),
    "next": runs_command("runs that a study needs next", NextConfig, "experiments.next_runs:propose_runs"),
    "ab": Command(RUNS, "A/B test of two settings or commits; the ledger", AbConfig, "experiments.ab:run_ab", "sides"),
    "gc": runs_command("find and delete what is no longer needed", GcConfig, "experiments.gc:collect_garbage"),
    "sync": Command(RUNS, "upload runs to a tracker", SyncConfig, "nanogpt.tracking.sync:sync_runs", "runs"),
    "submit": job("submit one run"),
    "status": job("state of each job"),
    "logs": job("the end of each log"),
    "wait": job("a live table until all jobs have ended"),
    "cancel": job("stop jobs; they save a checkpoint first"),
    "retry": job("submit failed points again"),
    "resubmit": job("submit all unfinished points again, with the current code"),
    "sizing": Command(SIZES, "parameters, FLOPs, memory and time", SizingConfig, "experiments.sizing:print_sizing"),
    "scaling": Command(SIZES, "best size for a budget", ScalingConfig, "experiments.scaling.command:run_scaling"),
    "coordinates": Command(
        SIZES, "coordinate check of muP", CoordinatesConfig, "experiments.coordinates:check_coordinates"
    ),
}


def main() -> NoReturn:
    """Run `nanogpt COMMAND …`."""
    run_subcommand("nanogpt", tuple(COMMANDS))


def run_subcommand(program: str, names: tuple[str, ...]) -> NoReturn:
    """Run the command that the first word names. Without a command, or with --help, list `names`."""
    words = sys.argv[1:]
    if words[:1] == ["-sc"]:
        complete_subcommand(names)
    if not words or words[0] not in names:
        exit_on_error("nanogpt", lambda: list_commands(program, names, words))
    sys.argv = [f"{program} {words[0]}", *words[1:]]
    run_command(words[0])


def complete_subcommand(names: tuple[str, ...]) -> NoReturn:
    """Answer `nanogpt -sc …`: a shell asks what may follow the line COMP_LINE, or for the script that makes it ask."""
    line = os.environ.get("COMP_LINE")
    if line is None:
        run_command("train")
    typed = re.match(r"\s*\S+\s+(\S+)\s+(.*)", line)
    if typed is None:
        print(*names)
    elif typed[1] in names and COMMANDS[typed[1]].group != JOBS:
        os.environ["COMP_LINE"] = f"nanogpt {typed[2]}"
        run_command(typed[1])
    sys.exit(0)


def run_command(name: str) -> NoReturn:
    """Run a command with the words of sys.argv and exit with its code."""
    exit_on_error("launch" if COMMANDS[name].group == JOBS else name, lambda: call_command(name))


def call_command(name: str) -> int:
    """Run a command with the words of sys.argv. Return its exit code. Raises LabError."""
    command = COMMANDS[name]
    folders, words = split_search_path(sys.argv[1:])
    function = import_when_called(command.function)
    with search_in(folders):
        if command.group == JOBS:
            return function(name, words)
        words = command.collect_words(words)
        sweep = import_when_called(command.sweep) if command.sweep else None
        return dispatch(name, command.config, function, words, sweep)


def import_when_called(where: str) -> Callable[..., Any]:
    """Return a function that imports `module:function` when it is called: --help needs no torch."""
    module, _, name = where.partition(":")
    return lambda *arguments: getattr(import_module(module), name)(*arguments)


def list_commands(program: str, names: tuple[str, ...], words: list[str]) -> int:
    """Print the commands by group. Raises BadInput if the first word is neither a command nor --help."""
    if words and words[0] not in ("--help", "-h"):
        allowed = f"allowed: one of {', '.join(names)}{hint(words[0], names)}"
        raise BadInput(f"{one_line(words[0])}: no such command; {allowed}")
    lines = [f"usage: {program} COMMAND [group=choice] [key=value] …"]
    for group in (MODEL, RUNS, JOBS, SIZES):
        rows = [(name, COMMANDS[name].summary) for name in names if COMMANDS[name].group == group]
        lines += ["", f"{group}:", *(f"  {name:<12} {summary}" for name, summary in rows)] if rows else []
    print("\n".join([*lines, "", f"{program} COMMAND --help explains a command; --help all lists its keys."]))
    return 0
