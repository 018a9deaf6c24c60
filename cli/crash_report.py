"""Report internal errors: the traceback on the terminal and in a file, and one line about the code."""

import sys
import traceback
from pathlib import Path

from nanogpt.errors import one_line
from nanogpt.provenance import git_state
from nanogpt.redaction import redact
from nanogpt.saved_text import save_text

EXIT_CODE = 1
MAX_FILES_NAMED = 5


def report_crash(command: str, error: Exception) -> int:
    """Print the traceback of an unforeseen exception and one line about it. Return the exit code."""
    lines = redact("".join(traceback.format_exception(error))).splitlines()
    text = "\n".join(one_line(line, 10_000) for line in lines)
    try:
        where = f"above and in {one_line(save_text(command, text), 400)}"
    except (OSError, RuntimeError):  # a full disk; no home folder
        where = "above"
    what = one_line(redact(f"{type(error).__name__}: {error}"), 300)
    print(text, f"error: internal error: {what}; traceback {where}; {describe_code(text)}", sep="\n", file=sys.stderr)
    return EXIT_CODE


def describe_code(text: str) -> str:
    """Return the files edited since the last commit, or a request to report the error if there are none.

    A new file counts if it occurs in the traceback `text`.
    """
    state = git_state(Path(__file__).parent)
    changed = [(line[:2], line[3:]) for line in state["changed"]] if state else []
    edited = [name for mark, name in changed if mark != "??" or name in text]
    if not edited:
        return "a mistake of nanogpt-lab, not yours; please report it with the command you gave"
    named = ", ".join(map(one_line, edited[:MAX_FILES_NAMED]))
    more = f" and {len(edited) - MAX_FILES_NAMED} more" if len(edited) > MAX_FILES_NAMED else ""
    return f"edited since the last commit: {named}{more}; a mistake may be there"
