"""Background programs that outlive the command that started them, identified safely.

A pid file proves nothing once its process is gone, since the pid may be reused. So each daemon gets variables of its
own in its environment, and a process without them is not touched.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanogpt.errors import BadEnvironment, one_line
from nanogpt.run_state import read_process_strings

POLL = 0.05  # seconds between looks
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
OTHERS = ("SLURM", "SBATCH", "SRUN", "SINFO", "SQUEUE", "SACCT", "SCANCEL", "SCONTROL", "MYSQL_")


@dataclass(frozen=True)
class Daemon:
    """A program that daemonizes itself: how to start, identify and stop it."""

    name: str
    command: tuple[str, ...]
    folder: Path
    """Holds `<name>.pid`, which the program writes, and `<name>.out`."""
    environment: dict[str, str]
    """Variables that only this daemon and its children have."""
    ready: Callable[[], bool]

    @property
    def pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def pid(self) -> int | None:
        """Return the process id if it runs and is ours."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if has_environment(pid, self.environment) else None

    def start(self, seconds: float = 60.0) -> bool:
        """Start it unless it runs, and wait until it is ready. Return whether it had to be started."""
        if self.pid() is not None:
            return False
        self.pid_file.unlink(missing_ok=True)
        output = self.folder / f"{self.name}.out"
        try:
            code = self.launch(output, seconds)
            if code == 0 and wait_until(lambda: self.is_ready() or self.is_gone(), seconds) and self.is_ready():
                return True
        except BaseException:
            kill_all(self.find_pids)
            raise
        kill_all(self.find_pids)
        said = output.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise BadEnvironment(f"{self.name} doesn't start: {one_line(said[0], 300)}; more in {self.folder.parent}")

    def launch(self, output: Path, seconds: float) -> int | None:
        """Run the command until it is in the background. Return its exit code, None after `seconds`."""
        with output.open("w") as file, suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=child_environment(self.environment),
                start_new_session=True,
                timeout=seconds,
            ).returncode
        return None

    def find_pids(self) -> list[int]:
        """Return its processes, also before it has written its pid."""
        return pids_with_environment(self.environment)

    def is_gone(self) -> bool:
        """Return whether it has no process. Looks for a while: one that forks and exits can be missed."""
        return not wait_until(lambda: bool(self.find_pids()), 10 * POLL)

    def is_ready(self) -> bool:
        """Return whether it has written its pid and works."""
        return self.pid() is not None and self.ready()

    def stop(self, seconds: float = 20.0) -> None:
        """Send SIGTERM, then SIGKILL after `seconds`; return when the process is gone."""
        limit, asked = time.monotonic() + seconds, False
        while (pid := self.pid()) is not None:
            late = time.monotonic() >= limit
            if late or not asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            asked = True
            time.sleep(POLL)
        self.pid_file.unlink(missing_ok=True)


def has_environment(pid: int, environment: Mapping[str, str]) -> bool:
    """Return whether a process runs and was started with these variables."""
    theirs = read_process_strings(pid, "environ")
    return bool(theirs) and all(f"{name}={value}".encode() in theirs for name, value in environment.items())


def list_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def pids_with_environment(environment: Mapping[str, str]) -> list[int]:
    return [pid for pid in list_pids() if has_environment(pid, environment)]


def namespace(pid: int | None = None) -> str:
    """Return the UTS namespace (host name) of a process, ours by default; empty if the process is gone."""
    try:
        return os.readlink(f"/proc/{pid or 'self'}/ns/uts")
    except OSError:
        return ""


def kill_all(pids: Callable[[], list[int]]) -> None:
    """Send SIGKILL until there are none, twice in a row: a process about to be killed can still start another."""
    calm = 0
    while calm < 2:
        found = pids()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        calm = 0 if found else calm + 1
        time.sleep(POLL / 5)


def child_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without variables of another Slurm or job, and with `own`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    return {**kept, "PATH": PATH, **own}


def run_tool(command: Sequence[str], environment: Mapping[str, str], seconds: float = 60.0) -> str:
    """Return the output of a tool. Raises BadEnvironment with its last line if it fails or exceeds `seconds`."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=child_environment(environment),
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise BadEnvironment(f"{command[0]}: no answer within {seconds:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BadEnvironment(f"{command[0]}: {one_line(said[0], 300)}")
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether the condition became true within `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(POLL)
    return True


def accepts_connections(listener: Path | int) -> bool:
    """Return whether a socket file or a port of this machine is listened on."""
    with socket.socket(socket.AF_INET if isinstance(listener, int) else socket.AF_UNIX) as client:
        return client.connect_ex(("127.0.0.1", listener) if isinstance(listener, int) else str(listener)) == 0


def are_free(ports: Iterable[int]) -> bool:
    """Return whether none of these ports is in use."""
    for port in ports:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections don't matter
            try:
                server.bind(("", port))
            except OSError:
                return False
    return True


def find_program(name: str) -> str | None:
    """Return the path of a program, also of one that only root has on its PATH."""
    return shutil.which(name, path=PATH)
