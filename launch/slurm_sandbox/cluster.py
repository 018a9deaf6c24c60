"""A throw-away Slurm in one folder: real daemons from Debian's packages, two simulated nodes, n1 and n2, with 8 CPUs
and 2 GPUs each.

Partitions: dev (preempted with 10 s of grace), scavenge (preempted at once), high (preempts both).
"""

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launch.slurm_sandbox import parts
from launch.slurm_sandbox.daemons import (
    Daemon,
    are_free,
    kill_all,
    list_pids,
    namespace,
    pids_with_environment,
    run_tool,
    wait_until,
)
from launch.slurm_sandbox.packages import check_root, install
from launch.slurm_sandbox.parts import CLUSTER_NAME, DEVICES, KILL_WAIT, MARK, SERVERS, slurm_conf, write_files
from nanogpt.errors import BadEnvironment, BadInput, one_line
from nanogpt.files import hold_lock

PORT, STEP, RANGES = 26800, 20, 50  # the first port, and the distance and number of the ranges that are tried
LOST = re.compile(r"down|unk|inval|fail|err|.*\*")  # states of a node that isn't there, as sinfo abbreviates them


@dataclass(frozen=True)
class SandboxCluster:
    """One Slurm under `root`. Methods raise BadEnvironment if this machine doesn't support it."""

    root: Path
    port: int = PORT
    """First port to try; the one that was free is stored in slurm.conf."""
    nodes: int = 2
    cpus: int = 8
    gpus: int = 2
    accounting: bool = True
    """slurmdbd and MariaDB, for sacct."""
    user_signal: bool = False
    """Preempted jobs get SIGUSR2, or what --signal names, instead of SIGTERM when their grace begins."""
    max_array_size: int = 2001
    """One more than the highest index of an array job."""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= STEP - 2 or not 0 <= self.gpus <= len(DEVICES):
            raise BadInput(f"nodes={self.nodes}, gpus={self.gpus}: 1 to {STEP - 2} nodes, 0 to {len(DEVICES)} GPUs")
        if not re.fullmatch(r"/[\w./+-]{1,79}", str(self.root), re.ASCII):
            allowed = "absolute, at most 80 characters, only letters, digits and ./+-_"
            raise BadInput(f"{one_line(self.root)}: a cluster's folder is named so: {allowed}")

    @property
    def conf(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that a command needs to reach this cluster; they also identify its processes."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> list[str]:
        """Start the daemons that don't run and wait until all nodes are up. Return the names of those started."""
        check_root()
        install(self.accounting)
        with self.lock_folder():
            before = self.running_daemons()
            self.configure(bool(before))
            try:
                started = [name for name in self.daemon_names() if self.start_daemon(name)]
                self.wait_for_nodes(self.node_names())
            except BaseException:
                if not before:
                    self.stop_daemons()
                raise
        return started

    def stop(self, wipe: bool = False) -> list[str]:
        """Cancel all jobs and stop all daemons; the database and job numbers stay unless `wipe`.

        Return the names of the daemons that ran.
        """
        check_root()
        if not self.is_ours():
            return []
        with self.lock_folder():
            running = self.running_daemons()
            self.cancel_jobs()
            self.stop_daemons()
            if wipe:
                shutil.rmtree(self.root)
        return running

    def status(self) -> str:
        """Return a text with the daemons, the nodes and the jobs."""
        running = self.running_daemons()
        if not running:
            return f"no cluster runs in {self.root}"
        lines = [f"running in {self.root}: {' '.join(running)}"]
        if "slurmctld" in running:
            lines.append(self.ask("sinfo", "-N", "-o", "%6N %10P %6t %14C %G").rstrip())
            lines.append(self.ask("squeue", "-o", "%10i %10P %20j %10T %10M %R").rstrip())
        return "\n".join(lines)

    def stop_controller(self) -> None:
        """Kill slurmctld, as if its machine died. Changes of the last 5 s may be lost."""
        self.daemon("slurmctld").stop(seconds=0)

    def start_controller(self) -> None:
        self.daemon("slurmctld").start()

    def fail_node(self, name: str) -> None:
        """Kill every process of a node, as if it lost power, and mark the node as down."""
        self.power_off(self.check_node(name))
        self.ask("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def restore_node(self, name: str) -> None:
        """Start a node again and wait until it is up."""
        self.daemon(self.check_node(name)).start()
        self.wait_for_nodes([name])

    def ask(self, *command: str) -> str:
        return run_tool(command, self.environment)

    def node_names(self) -> list[str]:
        """Return the nodes of the cluster in this folder, which may differ from those this object would start."""
        named = re.findall(r"^NodeName=(\S+)", self.conf.read_text(), re.MULTILINE) if self.conf.exists() else []
        return named or [f"n{number}" for number in range(1, self.nodes + 1)]

    def daemon_names(self) -> list[str]:
        """Return the daemons in the order in which they start."""
        servers = [name for name in SERVERS if self.accounting or name not in ("mariadbd", "slurmdbd")]
        return [*servers, *self.node_names()]

    def running_daemons(self) -> list[str]:
        return [name for name in (*SERVERS, *self.node_names()) if self.daemon(name).pid() is not None]

    def check_node(self, node: str) -> str:
        """Return the name of a node. Raises BadInput if there is no such node."""
        if node not in (names := self.node_names()):
            raise BadInput(f"node {one_line(node)}: this cluster has {' '.join(names)}")
        return node

    def daemon(self, name: str) -> Daemon:
        return parts.daemon(self.root, name, self.controller_port(), self.controller_answers)

    def controller_answers(self) -> bool:
        with suppress(BadEnvironment):
            return " is UP" in self.ask("scontrol", "ping")
        return False

    def configure(self, running: bool) -> None:
        """Write the files. Raises BadInput if a running cluster has other settings."""
        if not running:
            write_files(self, self.free_port())
        elif slurm_conf(self, self.controller_port()) != self.conf.read_text():
            raise BadInput(
                f"{self.root}: a cluster with other settings runs here; python -m launch.slurm_sandbox down ends it"
            )

    def start_daemon(self, name: str) -> bool:
        """Start a daemon unless it runs, with what it needs before and after. Return whether it had to be started."""
        if name == "mariadbd":
            return self.start_database()
        started = self.daemon(name).start()
        if started and name == "slurmdbd" and CLUSTER_NAME not in self.ask("sacctmgr", "-in", "show", "cluster"):
            self.ask("sacctmgr", "-i", "add", "cluster", CLUSTER_NAME)
        return started

    def start_database(self) -> bool:
        """Start MariaDB; replace a database on which it doesn't start."""
        mariadbd, folder = self.daemon("mariadbd"), self.root / "database"
        if folder.exists():
            try:
                return mariadbd.start()
            except BadEnvironment:
                shutil.rmtree(folder)
        half = self.root / "database.half"  # its name until it is whole
        shutil.rmtree(half, ignore_errors=True)
        options = ("--no-defaults", "--user=root", "--skip-test-db", "--auth-root-authentication-method=socket")
        run_tool(("mariadb-install-db", *options, f"--datadir={half}"), self.environment)
        half.rename(folder)
        return mariadbd.start()

    def controller_port(self) -> int:
        """Return the port in slurm.conf, or the default one before there is any."""
        named = re.search(r"^SlurmctldPort=(\d+)$", self.conf.read_text(), re.MULTILINE) if self.conf.exists() else None
        return int(named[1]) if named else self.port

    def free_port(self) -> int:
        """Return the first of enough consecutive free ports; the earlier ones if they are still free."""
        for base in (self.controller_port(), *(self.port + STEP * number for number in range(RANGES))):
            if are_free(range(base, base + 2 + self.nodes)):
                return base
        raise BadEnvironment(f"no {2 + self.nodes} free ports in a row from {self.port} to {self.port + STEP * RANGES}")

    def wait_for_nodes(self, names: list[str]) -> None:
        """Wait until these nodes are up."""

        def up() -> bool:
            lines = self.ask("sinfo", "-hN", "-p", "dev", "-o", "%N %t").splitlines()
            states = dict(line.split() for line in lines)
            return all(name in states and not LOST.match(states[name]) for name in names)

        if not wait_until(up, 60):
            raise BadEnvironment(f"{' '.join(names)}: not up after 60 s; more in {self.root / 'log'}")

    def cancel_jobs(self) -> None:
        """Cancel every job and wait for it to end."""
        with suppress(BadEnvironment):  # no controller, or one that hangs: the nodes are switched off anyway
            if self.daemon("slurmctld").pid() is not None:
                for state in ("PENDING", "RUNNING", "SUSPENDED"):
                    self.ask("scancel", f"--state={state}")
                wait_until(lambda: not self.ask("squeue", "-h", "-o", "%i"), KILL_WAIT + 5)

    def power_off(self, name: str) -> None:
        """Kill a node's slurmd and every process of its jobs."""
        signs = ({"NANOGPT_DAEMON": name}, {"SLURMD_NODENAME": name})  # a job has the second; slurmd may be gone

        def inside() -> list[int]:
            known = {namespace(pid) for sign in signs for pid in pids_with_environment(self.environment | sign)}
            known -= {"", namespace(), namespace(1)}
            return [pid for pid in list_pids() if namespace(pid) in known]

        kill_all(inside)
        self.daemon(name).stop(seconds=0)

    def stop_daemons(self) -> None:
        """Stop the nodes, then the servers in reverse order."""
        for name in self.node_names():
            self.power_off(name)
        for name in reversed(SERVERS):
            self.daemon(name).stop()

    def is_ours(self) -> bool:
        return self.conf.is_file() and self.conf.read_text().startswith(MARK)

    @contextmanager
    def lock_folder(self) -> Generator[None, None, None]:
        """Hold the lock of the cluster's folder. Raises BadInput if the folder isn't a cluster's."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        others = {entry.name for entry in self.root.iterdir()} - {"lock", ".slurm.conf.tmp"}
        if self.root.is_symlink() or self.root.stat().st_uid != 0 or (others and not self.is_ours()):
            raise BadInput(f"{self.root}: neither a cluster's nor an empty folder of root's; name one in NANOGPT_SLURM")
        with hold_lock(self.root / "lock", wait=True):
            yield
