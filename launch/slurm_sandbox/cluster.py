"""A throw-away Slurm on this machine, in one folder: real daemons of Debian's packages, two pretended nodes, n1 and n2,
with 8 pretended CPUs and 2 pretended GPUs each.

Partitions: dev (preempted with 10 s of grace), scavenge (preempted at once), high (preempts both).
"""

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launch.slurm_sandbox import parts
from launch.slurm_sandbox.daemons import Daemon, ask, free, kill_all, namespace, processes, wait_until, with_environment
from launch.slurm_sandbox.packages import install, need_root
from launch.slurm_sandbox.parts import CLUSTER_NAME, DEVICES, KILL_WAIT, MARK, SERVERS, slurm_conf, write_files
from nanogpt.errors import BadEnvironment, BadInput, one_line
from nanogpt.files import hold_lock

PORT, STEP, RANGES = 26800, 20, 50  # the first port, and the distance and number of the ranges that are tried
LOST = re.compile(r"down|unk|inval|fail|err|.*\*")  # states of a node that isn't there, as sinfo abbreviates them


@dataclass(frozen=True)
class Cluster:
    """One Slurm under `root`. Methods raise BadEnvironment when this machine can't have it."""

    root: Path
    port: int = PORT
    """Where the search for free ports begins; what was found is kept in slurm.conf."""
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
        """Slurm's configuration file."""
        return self.root / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to speak to this cluster; it is also what its processes are known by."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> list[str]:
        """Start what doesn't run yet and wait until all nodes are up. Returns the names of what was started."""
        need_root()
        install(self.accounting)
        with self.owned():
            before = self.running()
            self.configure(bool(before))
            try:
                started = [name for name in self.names() if self.begin(name)]
                self.wait_for_nodes(self.node_names())
            except BaseException:
                if not before:
                    self.end_daemons()
                raise
        return started

    def stop(self, wipe: bool = False) -> list[str]:
        """Cancel all jobs and end all daemons; the database and the job numbers stay unless `wipe`.

        Returns the names of what ran.
        """
        need_root()
        if not self.is_ours():
            return []
        with self.owned():
            running = self.running()
            self.cancel_jobs()
            self.end_daemons()
            if wipe:
                shutil.rmtree(self.root)
        return running

    def status(self) -> str:
        """What runs, the nodes and the jobs."""
        running = self.running()
        if not running:
            return f"no cluster runs in {self.root}"
        lines = [f"running in {self.root}: {' '.join(running)}"]
        if "slurmctld" in running:
            lines.append(self.ask("sinfo", "-N", "-o", "%6N %10P %6t %14C %G").rstrip())
            lines.append(self.ask("squeue", "-o", "%10i %10P %20j %10T %10M %R").rstrip())
        return "\n".join(lines)

    def stop_controller(self) -> None:
        """Kill slurmctld, as when its machine dies. Changes of the last 5 s may not have been written yet."""
        self.daemon("slurmctld").stop(seconds=0)

    def start_controller(self) -> None:
        """Start slurmctld again, with the state it left."""
        self.daemon("slurmctld").start()

    def fail_node(self, name: str) -> None:
        """Kill every process of a node, as when it loses power, and let the controller know."""
        self.power_off(self.checked(name))
        self.ask("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def restore_node(self, name: str) -> None:
        """Switch a node on again and wait until it is up."""
        self.daemon(self.checked(name)).start()
        self.wait_for_nodes([name])

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        return ask(command, self.environment)

    def node_names(self) -> list[str]:
        """The nodes of the cluster that runs or ran here, which may have others than this object would start."""
        named = re.findall(r"^NodeName=(\S+)", self.conf.read_text(), re.MULTILINE) if self.conf.exists() else []
        return named or [f"n{number}" for number in range(1, self.nodes + 1)]

    def names(self) -> list[str]:
        """The daemons in the order in which they start."""
        servers = [name for name in SERVERS if self.accounting or name not in ("mariadbd", "slurmdbd")]
        return [*servers, *self.node_names()]

    def running(self) -> list[str]:
        """The names of the daemons that run."""
        return [name for name in (*SERVERS, *self.node_names()) if self.daemon(name).pid() is not None]

    def checked(self, node: str) -> str:
        """The name of a node that exists."""
        if node not in (names := self.node_names()):
            raise BadInput(f"node {one_line(node)}: this cluster has {' '.join(names)}")
        return node

    def daemon(self, name: str) -> Daemon:
        """A server or a node."""
        return parts.daemon(self.root, name, self.controller_port(), self.controller_answers)

    def controller_answers(self) -> bool:
        """Whether slurmctld answers."""
        with suppress(BadEnvironment):
            return " is UP" in self.ask("scontrol", "ping")
        return False

    def configure(self, running: bool) -> None:
        """Write the files. A cluster that runs keeps its own, which have to say the same."""
        if not running:
            write_files(self, self.free_port())
        elif slurm_conf(self, self.controller_port()) != self.conf.read_text():
            raise BadInput(
                f"{self.root}: a cluster with other settings runs here; python -m launch.slurm_sandbox down ends it"
            )

    def begin(self, name: str) -> bool:
        """Start a daemon unless it runs, with what it needs before and after. Returns whether it had to be started."""
        if name == "mariadbd":
            return self.begin_database()
        started = self.daemon(name).start()
        if started and name == "slurmdbd" and CLUSTER_NAME not in self.ask("sacctmgr", "-in", "show", "cluster"):
            self.ask("sacctmgr", "-i", "add", "cluster", CLUSTER_NAME)
        return started

    def begin_database(self) -> bool:
        """Start MariaDB; a database on which it doesn't start is made anew."""
        mariadbd, folder = self.daemon("mariadbd"), self.root / "database"
        if folder.exists():
            try:
                return mariadbd.start()
            except BadEnvironment:
                shutil.rmtree(folder)
        half = self.root / "database.half"  # its name until it is whole
        shutil.rmtree(half, ignore_errors=True)
        options = ("--no-defaults", "--user=root", "--skip-test-db", "--auth-root-authentication-method=socket")
        ask(("mariadb-install-db", *options, f"--datadir={half}"), self.environment)
        half.rename(folder)
        return mariadbd.start()

    def controller_port(self) -> int:
        """The port that slurm.conf names; the wanted one as long as there is none."""
        named = re.search(r"^SlurmctldPort=(\d+)$", self.conf.read_text(), re.MULTILINE) if self.conf.exists() else None
        return int(named[1]) if named else self.port

    def free_port(self) -> int:
        """The first of as many free ports as this cluster needs; those it had, if they are still free."""
        for base in (self.controller_port(), *(self.port + STEP * number for number in range(RANGES))):
            if free(range(base, base + 2 + self.nodes)):
                return base
        raise BadEnvironment(f"no {2 + self.nodes} free ports in a row from {self.port} to {self.port + STEP * RANGES}")

    def wait_for_nodes(self, names: list[str]) -> None:
        """Return when these nodes are up."""

        def up() -> bool:
            lines = self.ask("sinfo", "-hN", "-p", "dev", "-o", "%N %t").splitlines()
            states = dict(line.split() for line in lines)
            return all(name in states and not LOST.match(states[name]) for name in names)

        if not wait_until(up, 60):
            raise BadEnvironment(f"{' '.join(names)}: not up after 60 s; more in {self.root / 'log'}")

    def cancel_jobs(self) -> None:
        """Cancel every job and give it its time to end."""
        with suppress(BadEnvironment):  # no controller, or one that hangs: the nodes are switched off anyway
            if self.daemon("slurmctld").pid() is not None:
                for state in ("PENDING", "RUNNING", "SUSPENDED"):
                    self.ask("scancel", f"--state={state}")
                wait_until(lambda: not self.ask("squeue", "-h", "-o", "%i"), KILL_WAIT + 5)

    def power_off(self, name: str) -> None:
        """Kill a node's slurmd and every process of its jobs."""
        signs = ({"NANOGPT_DAEMON": name}, {"SLURMD_NODENAME": name})  # a job has the second; slurmd may be gone

        def inside() -> list[int]:
            known = {namespace(pid) for sign in signs for pid in with_environment(self.environment | sign)}
            known -= {"", namespace(), namespace(1)}
            return [pid for pid in processes() if namespace(pid) in known]

        kill_all(inside)
        self.daemon(name).stop(seconds=0)

    def end_daemons(self) -> None:
        """Switch the nodes off, then end the servers, the first to be started last."""
        for name in self.node_names():
            self.power_off(name)
        for name in reversed(SERVERS):
            self.daemon(name).stop()

    def is_ours(self) -> bool:
        """Whether the folder is that of a cluster of this program."""
        return self.conf.is_file() and self.conf.read_text().startswith(MARK)

    @contextmanager
    def owned(self) -> Generator[None, None, None]:
        """While inside, nobody else starts or stops this cluster. Raises BadInput if the folder isn't a cluster's."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        others = {entry.name for entry in self.root.iterdir()} - {"lock", ".slurm.conf.tmp"}
        if self.root.is_symlink() or self.root.stat().st_uid != 0 or (others and not self.is_ours()):
            raise BadInput(f"{self.root}: neither a cluster's nor an empty folder of root's; name one in NANOGPT_SLURM")
        with hold_lock(self.root / "lock", wait=True):
            yield
