"""Points that one process trains as one network: `sweep.fused`."""

from typing import Literal

from cli.actions import silence_torch_logs
from cli.entry import report_exception
from cli.launcher_config import BasicLauncher, Launcher
from cli.plugin_config import PluginLauncher, PluginSweeper
from cli.sweep_config import AllPoints, Asha, Halving, Search, Sweeper
from launch.study import PlannedRun
from nanogpt.errors import BadInput


def check_fused(
    fused: int | Literal["auto"],
    runs: list[PlannedRun],
    launcher: Launcher | PluginLauncher,
    sweeper: Sweeper | PluginSweeper,
) -> None:
    """Raise BadInput if there is nothing that `sweep.fused` could train together."""
    if not isinstance(launcher, BasicLauncher):
        raise BadInput(f"sweep.fused={fused}: trains the points in this process; leave out hydra/launcher")
    if fused == "auto" and not isinstance(sweeper, AllPoints | Halving):
        raise BadInput(f"sweep.fused=auto: not with hydra/sweeper={sweeper.method}; give a number")
    if isinstance(sweeper, Asha):
        raise BadInput(f"sweep.fused={fused}: not with hydra/sweeper={sweeper.method}, which pauses points one by one")
    if isinstance(sweeper, Search) and sweeper.at_once == 1:
        raise BadInput(f"sweep.fused={fused}: one trial is trained at a time; give hydra.sweeper.at_once={fused}")
    if (
        fused != "auto"
        and not isinstance(sweeper, Search | PluginSweeper)
        and len(group_runs(runs, fused)) == len(runs)
    ):
        raise BadInput(
            f"sweep.fused={fused}: no two points differ in optimizer, schedule, model.dropout or training.seed alone"
        )


def group_runs(runs: list[PlannedRun], fused: int) -> list[list[PlannedRun]]:
    """Return groups of at most `fused` runs that can be trained as one network, in the order of their first runs."""
    from nanogpt.training.fused import shared_values  # imports torch

    groups: list[list[PlannedRun]] = []
    newest: dict[str, list[PlannedRun]] = {}
    for planned in runs:
        key = repr(shared_values(planned.config))
        if key not in newest or len(newest[key]) == fused:
            newest[key] = []
            groups.append(newest[key])
        newest[key].append(planned)
    return groups


def train_group(group: list[PlannedRun]) -> list[tuple[int, str]]:
    """Train runs as one network. Return each run's exit code and the reason of a failure; nothing is raised."""
    silence_torch_logs()
    from nanogpt.training.fused import train_fused  # imports torch

    try:
        ends = train_fused([planned.config for planned in group])
    except Exception as error:
        return [report_exception("train", error)] * len(group)
    return [report_exception("train", end) if isinstance(end, Exception) else (end, "") for end in ends]
