"""Install Slurm from Debian's or Ubuntu's packages:  python -m launch.slurm_sandbox.packages"""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cli.entry import exit_on_error
from launch.slurm_sandbox.daemons import child_environment, find_program, run_tool
from nanogpt.errors import BadEnvironment, one_line

PACKAGES = {  # package -> a program of it that is needed
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-client": "sbatch",
    "munge": "munged",
    "slurm-wlm-basic-plugins": None,
}
FOR_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadb-server": "mariadbd"}
POLICY = Path("/usr/sbin/policy-rc.d")  # asked by packages whether they may start their services; 101 is no


def check_root() -> None:
    """Raise BadEnvironment unless we may do what Slurm's daemons do: switch users and create namespaces."""
    if os.geteuid() != 0:
        raise BadEnvironment("a cluster needs root: run this as root, or allow sudo without a password")
    try:
        run_tool(("unshare", "--mount", "--uts", "true"), {})
    except BadEnvironment:
        raise BadEnvironment("no namespaces for the nodes: a container needs --privileged or SYS_ADMIN") from None


def become_root(module: str, words: list[str], environment: dict[str, str]) -> None:
    """Rerun the command through sudo unless we are root. Raises BadEnvironment if sudo asks for a password."""
    if os.geteuid() == 0:
        return
    if not find_program("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode:
        check_root()
    os.execvpe("sudo", ["sudo", "-n", "-E", sys.executable, "-m", module, *words], os.environ | environment)


def install(accounting: bool) -> None:
    """Install what is missing. Raises BadEnvironment."""
    wanted = PACKAGES | (FOR_ACCOUNTING if accounting else {})
    if not (lacking := find_missing(wanted)):
        return
    names = " ".join(wanted)
    if not find_program("apt-get"):
        raise BadEnvironment(f"no {lacking[0]}, and no apt-get to install it: this needs Debian or Ubuntu, or {names}")
    print(f"installing {names} (once)", flush=True)
    with prevent_services(POLICY):
        if run_apt("install", *wanted) is not None:
            run_apt("update")
            if said := run_apt("install", *wanted):
                raise BadEnvironment(f"apt-get can't install Slurm: {one_line(said, 300)}")
    if lacking := find_missing(wanted):
        raise BadEnvironment(f"no {' and no '.join(lacking)}, even after: apt-get install {names}")


def find_missing(wanted: dict[str, str | None]) -> list[str]:
    return [program for program in wanted.values() if program and not find_program(program)]


def run_apt(action: str, *packages: str) -> str | None:
    """Run apt-get. Return None, or its last line if it failed."""
    options = ("-y", "--no-install-recommends") if packages else ()
    done = subprocess.run(
        ["apt-get", "-q", action, *options, *packages],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=child_environment({"DEBIAN_FRONTEND": "noninteractive"}),
    )
    if done.returncode == 0:
        return None
    return (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


@contextmanager
def prevent_services(policy: Path) -> Generator[None, None, None]:
    """Keep packages from starting their services while inside, and restore the earlier `policy` afterwards."""
    before = policy.with_name(policy.name + ".before-nanogpt")
    if policy.exists() and not before.exists():  # if it exists, an installation was killed and this is its policy
        policy.rename(before)
    try:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)
        if before.exists():
            os.replace(before, policy)


def main(words: list[str]) -> int:
    """Install everything, as root. Return the exit code."""
    become_root("launch.slurm_sandbox.packages", words, {})
    install(accounting=True)
    return 0


if __name__ == "__main__":
    exit_on_error("packages", lambda: main(sys.argv[1:]))
