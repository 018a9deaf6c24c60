"""Background programs that outlive the command that started them, and are never mistaken for others.

A pid file alone proves nothing once its process is gone, since the system gives the number to somebody else. So each
daemon gets an environment of its own, and a process without it is not touched.
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

POLL = 0.05  # seconds between looks
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
OTHERS = ("SLURM", "SBATCH", "SRUN", "SINFO", "SQUEUE", "SACCT", "SCANCEL", "SCONTROL", "MYSQL_")


@dataclass(frozen=True)
class Daemon:
    """A program that goes to the background by itself, and what it takes to start it, to know it and to end it."""

    name: str
    command: tuple[str, ...]
    folder: Path
    """Holds `<name>.pid`, which the program writes, and `<name>.out`."""
    environment: dict[str, str]
    """What no process but this daemon, and what it starts, has in its environment."""
    ready: Callable[[], bool]

    @property
    def pid_file(self) -> Path:
        """Where the program writes its pid."""
        return self.folder / f"{self.name}.pid"

    def pid(self) -> int | None:
        """The process, if it runs and is ours."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if has(pid, self.environment) else None

    def start(self, seconds: float = 60.0) -> bool:
        """Start it unless it runs, and wait until it is ready. Returns whether it had to be started."""
        if self.pid() is not None:
            return False
        self.pid_file.unlink(missing_ok=True)
        output = self.folder / f"{self.name}.out"
        try:
            code = self.launch(output, seconds)
            if code == 0 and wait_until(lambda: self.is_ready() or self.is_gone(), seconds) and self.is_ready():
                return True
        except BaseException:
            kill_all(self.alive)
            raise
        kill_all(self.alive)
        said = output.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise BadEnvironment(f"{self.name} doesn't start: {one_line(said[0], 300)}; more in {self.folder.parent}")

    def launch(self, output: Path, seconds: float) -> int | None:
        """Run the command until it has gone to the background. Returns its exit code, None after `seconds`."""
        with output.open("w") as file, suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=surroundings(self.environment),
                start_new_session=True,
                timeout=seconds,
            ).returncode
        return None

    def alive(self) -> list[int]:
        """Its processes, also before it has written its pid."""
        return with_environment(self.environment)

    def is_gone(self) -> bool:
        """Whether it has no process. One that forks and ends while we look can be missed, so we look for a while."""
        return not wait_until(lambda: bool(self.alive()), 10 * POLL)

    def is_ready(self) -> bool:
        """Whether it has written its pid and does its work."""
        return self.pid() is not None and self.ready()

    def stop(self, seconds: float = 20.0) -> None:
        """SIGTERM, then SIGKILL after `seconds`; returns when the process is gone."""
        limit, asked = time.monotonic() + seconds, False
        while (pid := self.pid()) is not None:
            late = time.monotonic() >= limit
            if late or not asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            asked = True
            time.sleep(POLL)
        self.pid_file.unlink(missing_ok=True)


def has(pid: int, environment: Mapping[str, str]) -> bool:
    """Whether a process runs and was started with these variables."""
    try:
        theirs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(f"{name}={value}".encode() in theirs for name, value in environment.items())


def processes() -> list[int]:
    """The numbers of all processes."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def with_environment(environment: Mapping[str, str]) -> list[int]:
    """The processes that were started with these variables."""
    return [pid for pid in processes() if has(pid, environment)]


def namespace(pid: int | None = None) -> str:
    """The UTS namespace (host name) of a process, or of ours; empty if the process is gone."""
    try:
        return os.readlink(f"/proc/{pid or 'self'}/ns/uts")
    except OSError:
        return ""


def kill_all(pids: Callable[[], list[int]]) -> None:
    """SIGKILL until there are none, twice in a row: one that is about to be killed can still start another."""
    calm = 0
    while calm < 2:
        found = pids()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        calm = 0 if found else calm + 1
        time.sleep(POLL / 5)


def surroundings(own: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what another Slurm, or a job we are part of, has left there, and with `own`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    return {**kept, "PATH": PATH, **own}


def ask(command: Sequence[str], environment: Mapping[str, str], seconds: float = 60.0) -> str:
    """What a tool prints. Raises BadEnvironment with its last words when it fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=surroundings(environment),
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise BadEnvironment(f"{command[0]}: no answer within {seconds:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BadEnvironment(f"{command[0]}: {one_line(said[0], 300)}")
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition became true within `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(POLL)
    return True


def answers(place: Path | int) -> bool:
    """Whether somebody listens on a socket file, or on a port of this machine."""
    family, address = (socket.AF_INET, ("127.0.0.1", place)) if isinstance(place, int) else (socket.AF_UNIX, str(place))
    with socket.socket(family) as client:
        return client.connect_ex(address) == 0


def free(ports: Iterable[int]) -> bool:
    """Whether nobody listens on any of these ports."""
    for port in ports:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections don't matter
            try:
                server.bind(("", port))
            except OSError:
                return False
    return True


def found(name: str) -> str | None:
    """The path of a program, also of one that only root has on its PATH."""
    return shutil.which(name, path=PATH)
