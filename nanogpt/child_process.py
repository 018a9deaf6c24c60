"""Run a module in a fresh process: a message on its standard input, an answer as the last line of its output."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

from nanogpt.errors import LabError

CODE_ROOT = Path(__file__).parents[1]  # what new processes import; a sweep replaces it by its copy
Child = subprocess.Popen[str]


class ChildFailed(Exception):
    """The process ended with an error. Its message is the last line that the process printed."""

    def __init__(self, code: int, output: str) -> None:
        """Take the message from standard error; `code` is the exit code, or minus the signal."""
        lines = output.strip().splitlines()
        ended = f"exit code {code}" if code > 0 else "no message"
        super().__init__(lines[-1].removeprefix("error: ").strip() if lines else ended)
        self.code = code
        self.is_lab_error = bool(lines) and lines[-1].startswith("error: ")
        """The process printed a LabError, whose class follows from the exit code."""


def start_child(module: str, *words: str, message: str, **environment: str) -> Child:
    """Start a module in its own session, with these variables added to the environment."""
    with tempfile.TemporaryFile("w+") as file:
        file.write(message)
        file.seek(0)
        return subprocess.Popen(
            module_command(module, *words),
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            start_new_session=True,
        )


def module_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of ours as `python -m` does, but never one in the current folder.

    Python's option for that, -P, is new in 3.11.
    """
    root = str(CODE_ROOT)
    lines = [
        "import sys",
        "sys.path[:] = filter(None, sys.path)",
        f"{root!r} in sys.path or sys.path.insert(0, {root!r})",
        "import runpy",
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)",
    ]
    return [sys.executable, "-c", "; ".join(lines), *words]


def python_path(code: str | Path) -> str:
    """Return a PYTHONPATH that begins with `code`."""
    return os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))


def wait_for_child(child: Child, timeout: float | None = None) -> str:
    """Return the child's answer, and end what is left of its session. Raises ChildFailed, subprocess.TimeoutExpired."""
    try:
        output, errors = child.communicate(timeout=timeout)
    finally:
        end_child(child)
    if child.returncode:
        raise ChildFailed(child.returncode, errors)
    return (output.splitlines() or [""])[-1]


def end_child(child: Child) -> None:
    """Kill what is left of a child's session, and close its pipes."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: a session that has ended
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def answer(work: Callable[[str], str]) -> int:
    """Print in the child what `work` returns for the message, or its LabError. Returns the exit code.

    Anything that `work` prints goes to standard error. If the parent dies, so does this process.
    """
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        with redirect_stdout(sys.stderr):
            result = work(sys.stdin.read())
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(result)
    return 0


def exit_with_parent(parent: int) -> None:
    """End this process once `parent` is no longer its parent: a new command may be doing the same work."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
