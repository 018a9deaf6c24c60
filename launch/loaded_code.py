"""Protect a sweep that runs in this process from edits of the code."""

import importlib
import pkgutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.snapshot import ROOT, snapshot
from launch.study import PlannedRun
from nanogpt import child_process

UNUSED = ("nanogpt.benchmark", "nanogpt.doctor", "nanogpt.gpu_check")
TRACKERS = ("nanogpt.tracking.wandb", "nanogpt.tracking.tensorboard", "nanogpt.tracking.trackio")


@contextmanager
def keep_code(runs: Sequence[PlannedRun]) -> Generator[None, None, None]:
    """Import every module that the runs may need, and start further ranks from a copy of the code.

    A single run needs neither: it imports everything when it starts.
    """
    if len(runs) < 2:
        yield
        return
    load_library({f"nanogpt.tracking.{name}" for run in runs for name in run.config.tracking.trackers})
    if not any((run.config.hardware.devices or 1) > 1 for run in runs):
        yield
        return
    before = child_process.CODE_ROOT
    with tempfile.TemporaryDirectory(prefix="nanogpt-code-") as folder:
        child_process.CODE_ROOT = snapshot(Path(folder))
        try:
            yield
        finally:
            child_process.CODE_ROOT = before


def load_library(wanted: set[str]) -> None:
    """Import all modules that training uses; of the trackers only those in `wanted`."""
    for module in pkgutil.walk_packages([str(ROOT / "nanogpt")], "nanogpt."):
        if not module.name.startswith(UNUSED) and (module.name not in TRACKERS or module.name in wanted):
            with suppress(ImportError):  # a library that isn't installed is reported by the point that needs it
                importlib.import_module(module.name)
