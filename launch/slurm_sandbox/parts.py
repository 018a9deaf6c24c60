"""Configuration files and daemons of the throw-away Slurm."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from launch.slurm_sandbox.daemons import Daemon, accepts_connections, run_tool
from nanogpt.files import write_atomic

MARK = "# A throw-away Slurm of nanogpt-lab; written anew at each start."
CLUSTER_NAME = "nanogpt"
SERVERS = ("munged", "mariadbd", "slurmdbd", "slurmctld")  # in the order in which they start; then the nodes
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # pretended GPUs: Slurm wants character devices
CRED_EXPIRE = 10  # seconds that a requeued job waits at least; with Slurm's own 120 each such test takes minutes
KILL_WAIT = 5  # seconds between SIGTERM and SIGKILL
GRACE = 10  # seconds that a preempted job of partition dev gets
# A node sets its own /etc/hosts and host name, in namespaces that end with it, and becomes slurmd.
BOOT = 'mount --bind "$1" /etc/hosts && hostname "$2" && exec slurmd -f "$3" -N "$2"'

SLURM = """\
{mark}
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket,cred_expire={cred_expire}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
SlurmdParameters=config_overrides
{controller}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,default_queue_depth=2000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize={max_array_size}
MaxJobCount=10000
MinJobAge=300
InactiveLimit=0
KillWait={kill_wait}
OverTimeLimit=0
BatchStartTimeout=10
JobRequeue=1
{accounting}
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=dev Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=scavenge PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/run/munge.socket
AccountingStorageTRES=gres/gpu"""

DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
DATABASE_OPTIONS = ("--no-defaults", "--user=root", "--skip-networking", "--innodb-flush-log-at-trx-commit=0")


class SandboxSettings(Protocol):
    """The settings of a cluster that its files depend on."""

    @property
    def root(self) -> Path: ...
    @property
    def nodes(self) -> int: ...
    @property
    def cpus(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def accounting(self) -> bool: ...
    @property
    def user_signal(self) -> bool: ...
    @property
    def max_array_size(self) -> int: ...


def slurm_conf(cluster: SandboxSettings, port: int) -> str:
    """Return slurm.conf. `port` is the controller's; slurmdbd and the nodes use those after it."""
    gres = f" Gres=gpu:{cluster.gpus}" if cluster.gpus else ""
    accounting = ACCOUNTING.format(root=cluster.root, port=port + 1)
    nodes = [
        f"NodeName=n{number} NodeHostname={short_host_name()} NodeAddr=127.0.0.1 Port={port + 1 + number} "
        f"CPUs={cluster.cpus} RealMemory=16000{gres} State=UNKNOWN"
        for number in range(1, cluster.nodes + 1)
    ]
    return SLURM.format(
        mark=MARK,
        name=CLUSTER_NAME,
        root=cluster.root,
        host=short_host_name(),
        port=port,
        cred_expire=CRED_EXPIRE,
        kill_wait=KILL_WAIT,
        grace=GRACE,
        max_array_size=cluster.max_array_size,
        controller="SlurmctldParameters=preempt_send_user_signal" if cluster.user_signal else "",
        accounting=accounting if cluster.accounting else "AccountingStorageType=accounting_storage/none",
        nodes="\n".join(nodes),
    )


def short_host_name() -> str:
    return socket.gethostname().partition(".")[0]


def write_files(cluster: SandboxSettings, port: int) -> None:
    """Write folders, key and configuration files. slurm.conf comes first: its first line marks the folder as ours."""
    root = cluster.root
    write_atomic(root / "slurm.conf", slurm_conf(cluster, port))
    root.chmod(0o755)
    for folder in ("run", "log", "state", "spool"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(0o755)
    gpus = f"Name=gpu File={','.join(DEVICES[: cluster.gpus])}\n" if cluster.gpus else ""
    # since 23.02 slurmd looks for a systemd that gives it cgroups unless told not to; before, it doesn't know the word
    version = re.search(r"(\d+)\.(\d+)", run_tool(("slurmctld", "-V"), {}))
    cgroup = "CgroupPlugin=disabled\n" if version and (int(version[1]), int(version[2])) >= (23, 2) else ""
    names = [short_host_name(), *(f"n{number}" for number in range(1, cluster.nodes + 1))]
    hosts = Path("/etc/hosts").read_text().rstrip("\n") + "\n" + "".join(f"127.0.0.1 {name}\n" for name in names)
    for name, text in {"gres.conf": gpus, "cgroup.conf": cgroup, "hosts": hosts}.items():
        (root / name).write_text(text)
    for name in ("slurm.conf", "gres.conf", "cgroup.conf", "hosts"):
        (root / name).chmod(0o644)  # whatever our umask is: jobs of other users read them
    secret, key = root / "slurmdbd.conf", root / "run" / "munge.key"
    for file in (secret, key):
        file.touch(mode=0o600)
    secret.write_text(DATABASE.format(root=root, port=port + 1))
    if key.stat().st_size < 128:
        key.write_bytes(os.urandom(128))


def daemon(root: Path, name: str, port: int, controller_answers: Callable[[], bool]) -> Daemon:
    """Return one of the SERVERS or a node: how to start it, identify it and tell that it is ready."""
    run, conf = root / "run", root / "slurm.conf"
    own = {"SLURM_CONF": str(conf), "NANOGPT_DAEMON": name}
    if name == "munged":
        files = {"key-file": run / "munge.key", "socket": run / "munge.socket", "pid-file": run / "munged.pid"}
        files |= {"log-file": root / "log" / "munged.log", "seed-file": run / "munge.seed"}
        command = ["munged", "--force", *(f"--{option}={file}" for option, file in files.items())]
        return Daemon(name, tuple(command), run, own, lambda: accepts_connections(run / "munge.socket"))
    if name == "mariadbd":  # its socket file knows root without a password, and there is no port
        command = ["setsid", "--fork", "mariadbd", *DATABASE_OPTIONS, f"--datadir={root / 'database'}"]
        command += [f"--socket={run / 'mariadbd.socket'}", f"--pid-file={run / 'mariadbd.pid'}"]
        return Daemon(name, tuple(command), run, own, lambda: accepts_connections(run / "mariadbd.socket"))
    if name == "slurmdbd":  # "localhost" means the socket file that this variable names
        own |= {"MYSQL_UNIX_PORT": str(run / "mariadbd.socket")}
        return Daemon(name, ("slurmdbd",), run, own, lambda: accepts_connections(port + 1))
    if name == "slurmctld":
        return Daemon(name, ("slurmctld", "-f", str(conf)), run, own, controller_answers)
    boot = ("unshare", "--mount", "--uts", "sh", "-c", BOOT, "boot", str(root / "hosts"), name, str(conf))
    return Daemon(name, boot, run, own, lambda: True)
