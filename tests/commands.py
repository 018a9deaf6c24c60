"""Commands as a person gives them, in processes forked from a server that has loaded torch.

Each has its own folder, environment, arguments and output, as if it had been started from a shell; only the 2 s of
imports are spared. What is about starting itself (which modules are loaded, which terminal is there) is tested on real
commands elsewhere.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.ranks import processes, take

ROOT = Path(__file__).parents[1]


def command(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python train.py …` or `python -m experiments …`, given in `folder`, once it has ended."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept) / "out", Path(kept) / "err"
        there = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} | environment
        process = processes.Process(target=body, args=(words, str(folder), there, str(out), str(err)))
        process.start()
        try:
            process.join()
        finally:
            process.kill()  # if pytest gave up on it
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


QUESTIONS = """
import contextlib, io, json, runpy, sys
program, questions = json.loads(sys.argv[1])
for words in questions:
    sys.argv, told, code = [program, *words], io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            (runpy.run_path if ".py" in program else runpy.run_module)(program, run_name="__main__")
        except SystemExit as end:
            code = end.code
    loaded = sorted({"torch", "scipy", "matplotlib", "transformers", "wandb"} & set(sys.modules))
    print(json.dumps([code, told.getvalue(), loaded]))
"""


def ask_all(program: str, questions: list[list[str]], folder: Path) -> list[tuple[int, str, list[str]]]:
    """Give a command several times in one new process. Returns of each time (exit code, standard error, large libraries
    that are loaded by then).
    """
    line = [sys.executable, "-c", QUESTIONS, json.dumps([program, questions])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [tuple(json.loads(answer)) for answer in done.stdout.splitlines()]  # type: ignore[misc]


def body(words: tuple[str, ...], folder: str, environment: Mapping[str, str], out: str, err: str) -> None:
    """All of the process."""
    take(environment, out, err)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, *rest = words[1:] if words[0] == "-m" else words
    sys.path[0] = str(ROOT)
    sys.argv = [module if words[0] == "-m" else str(ROOT / module), *rest]
    if words[0] == "-m":
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
