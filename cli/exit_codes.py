"""Translate exceptions of Python and libraries that the machine or the input causes into our errors."""

import errno
import os
import re
import sys

from cli import INSTALL
from nanogpt.console import PACKAGES
from nanogpt.device_errors import as_device_error
from nanogpt.errors import BadData, BadEnvironment, BadInput, LabError, one_line

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|bad_alloc", re.IGNORECASE)
REMEDIES = {
    errno.ENOSPC: "; free some space, or choose another place",
    errno.EDQUOT: "; your quota there is used up",
    errno.EMFILE: "; raise the limit with ulimit -n",
    errno.EROFS: "; choose another place",
}


def to_lab_error(command: str, error: Exception) -> LabError | None:
    """Return the error that an exception means for `command`; None if only a bug can cause it."""
    what = one_line(f"{type(error).__name__}: {error}", 300)
    if isinstance(error, LabError):
        return error
    if known := as_device_error(error):
        return known
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
        return BadEnvironment(f"out of memory: {what}")
    if isinstance(error, ImportError):
        return missing_package_error(error)
    if isinstance(error, OSError):
        return system_call_error(command, error)
    if isinstance(error, UnicodeDecodeError):
        return BadData(f"{command}: a text is not valid {error.encoding} at byte {error.start}: {error.reason}")
    if isinstance(error, UnicodeEncodeError):
        return BadInput(f"{command}: {one_line(error.object, 60)} can't be written as {error.encoding}")
    if isinstance(error, RecursionError):
        return BadInput(f"{command}: a value or a file is nested too deeply")
    if isinstance(error, OverflowError):
        return BadInput(f"{command}: a number is too large or too small to compute with: {one_line(error)}")
    return None


def missing_package_error(error: ImportError) -> BadEnvironment | None:
    """Return the error for a package that is not installed or can't be loaded; None for one of our modules."""
    package = (error.name or "").partition(".")[0]
    if not package or package in PACKAGES:
        return None
    why = "has no" if isinstance(error, ModuleNotFoundError) else f"can't import from ({one_line(error, 160)})"
    return BadEnvironment(f"{one_line(sys.executable)} {why} '{one_line(package)}'; {INSTALL}")


def system_call_error(command: str, error: OSError) -> BadEnvironment:
    """Return the error for a failed system call: file, reason, remedy."""
    try:
        os.getcwd()
    except OSError:
        return BadEnvironment("the current folder was deleted or can't be read; change to another one")
    where = f"{command}, in what it writes or prints"
    if isinstance(error.filename, str | bytes | os.PathLike):
        where = os.fsdecode(error.filename)  # pyright: ignore[reportUnknownArgumentType]
    remedy = REMEDIES.get(error.errno or 0, "")
    return BadEnvironment(f"{one_line(where, 400)}: {error.strerror or one_line(error, 300)}{remedy}")
