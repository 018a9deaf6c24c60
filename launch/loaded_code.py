"""Keep the code of a sweep in this process as it was when the sweep began, whatever is edited while it runs."""

import importlib
import pkgutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import nanogpt
from launch.snapshot import snapshot
from launch.study import Member
from nanogpt.distributed import spawn

UNUSED = ("nanogpt.benchmark", "nanogpt.doctor", "nanogpt.gpu_check")
TRACKERS = ("nanogpt.tracking.wandb", "nanogpt.tracking.tensorboard", "nanogpt.tracking.trackio")


@contextmanager
def keep_code(members: Sequence[Member]) -> Generator[None, None, None]:
    """Load every module that the points may need, and give those with several ranks a copy of the code.

    One point alone needs neither: it loads what it needs at its start.
    """
    if len(members) < 2:
        yield
        return
    load_library({f"nanogpt.tracking.{name}" for one in members for name in one.config.tracking.trackers})
    if not any((one.config.hardware.devices or 1) > 1 for one in members):
        yield
        return
    before = spawn.CODE
    with tempfile.TemporaryDirectory(prefix="nanogpt-code-") as folder:
        spawn.CODE = snapshot(Path(folder))
        try:
            yield
        finally:
            spawn.CODE = before


def load_library(wanted: set[str]) -> None:
    """Import all modules of the library but the trackers that are not wanted and what no training uses."""
    for module in pkgutil.walk_packages(nanogpt.__path__, "nanogpt."):
        if not module.name.startswith(UNUSED) and (module.name not in TRACKERS or module.name in wanted):
            with suppress(ImportError):  # of a library that isn't installed; a point that needs it says so
                importlib.import_module(module.name)
