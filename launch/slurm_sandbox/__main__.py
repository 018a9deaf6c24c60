"""A throw-away Slurm on this machine, for trying jobs, preemption and faults.

python -m launch.slurm_sandbox up|status|down

All files are in one folder, /tmp/nanogpt-slurm-<uid> or $NANOGPT_SLURM; `down --wipe` removes it too.
"""

import os
import sys
import time
from pathlib import Path

from cli.entry import exit_on_error
from launch.slurm_sandbox.cluster import SandboxCluster
from launch.slurm_sandbox.packages import become_root
from nanogpt.errors import BadInput, hint, one_line

ACTIONS = ("up", "status", "down")


def default_root() -> Path:
    """Return the folder of this user's cluster, also under sudo."""
    user = os.environ.get("SUDO_UID", os.getuid())
    return Path(os.environ.get("NANOGPT_SLURM") or f"/tmp/nanogpt-slurm-{user}")


def main(words: list[str]) -> int:
    """Run the action that the command line names. Return the exit code."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    allowed = (*ACTIONS, "--wipe")
    for word in words:
        if word not in allowed:
            raise BadInput(f"{one_line(word)}: not one of {' '.join(allowed)}{hint(word, allowed)}")
    actions = [word for word in words if word in ACTIONS]
    if len(actions) != 1 or ("--wipe" in words and actions != ["down"]):
        raise BadInput(f"python -m launch.slurm_sandbox: one of {' '.join(ACTIONS)}; --wipe goes with down")
    cluster = SandboxCluster(default_root())
    become_root("launch.slurm_sandbox", words, {"NANOGPT_SLURM": str(cluster.root)})
    if actions == ["up"]:
        up(cluster)
    elif actions == ["down"]:
        down(cluster, "--wipe" in words)
    else:
        print(cluster.status())
    return 0


def up(cluster: SandboxCluster) -> None:
    """Start the cluster and print how to use it."""
    began = time.monotonic()
    started = cluster.start()
    print(f"started {' '.join(started)} in {time.monotonic() - began:.1f} s" if started else "running already")
    print(f"export SLURM_CONF={cluster.conf}")
    print("sinfo\nnanogpt train -m hydra/launcher=submitit_slurm optimizer.lr=1e-3,3e-4")


def down(cluster: SandboxCluster, wipe: bool) -> None:
    """Stop the cluster and print what is left."""
    before, stopped = cluster.root.exists(), cluster.stop(wipe)
    print(f"stopped {' '.join(stopped)}" if stopped else f"no cluster runs in {cluster.root}")
    if cluster.is_ours():
        print(f"{cluster.root} stays, for a quicker start; down --wipe removes it")
    elif before and not cluster.root.exists():
        print(f"removed {cluster.root}")


if __name__ == "__main__":
    exit_on_error("cluster", lambda: main(sys.argv[1:]))
