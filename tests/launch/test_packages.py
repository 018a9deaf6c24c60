"""Requirements of the throw-away Slurm: root, namespaces, and packages that it installs."""

import os
import re
import sys
from pathlib import Path

import pytest

from launch.slurm_sandbox import daemons, packages
from launch.slurm_sandbox.__main__ import main
from launch.slurm_sandbox.cluster import SandboxCluster
from nanogpt.errors import BadEnvironment
from tests.launch.slurm import program


def test_not_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(daemons, "PATH", str(tmp_path))
    for words in (["up"], ["status"], ["down"]):
        with pytest.raises(
            BadEnvironment, match="needs root: run this as root, or allow sudo without a password"
        ) as error:
            main(words)
        assert error.value.exit_code == 5
    with pytest.raises(BadEnvironment, match="needs root"):
        SandboxCluster(tmp_path / "c").start()


@pytest.mark.parametrize("allowed", [True, False])
def test_sudo_without_a_password_is_used(allowed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "sudo", f"exit {0 if allowed else 1}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(daemons, "PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NANOGPT_SLURM", "/tmp/of-mine")
    called: list[object] = []

    def instead(*arguments: object) -> None:
        called.extend(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execvpe", instead)
    with pytest.raises(SystemExit if allowed else BadEnvironment):
        main(["down", "--wipe"])
    if allowed:
        assert called[:2] == [
            "sudo",
            ["sudo", "-n", "-E", sys.executable, "-m", "launch.slurm_sandbox", "down", "--wipe"],
        ]
        assert isinstance(called[2], dict) and called[2]["NANOGPT_SLURM"] == "/tmp/of-mine"


def test_no_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "unshare", "echo unshare failed: Operation not permitted >&2; exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(daemons, "PATH", str(tmp_path))
    with pytest.raises(BadEnvironment, match="a container needs --privileged or SYS_ADMIN"):
        packages.check_root()


def test_no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(daemons, "PATH", str(tmp_path))
    with pytest.raises(
        BadEnvironment, match="no slurmctld, and no apt-get to install it: this needs Debian or Ubuntu, or"
    ):
        packages.install(accounting=False)


APT = """
echo "$@" "($(cat {policy}))" >> {folder}/said
case "$2" in
  update) touch {folder}/updated;;
  install) [ -e {folder}/updated ] || {{ echo "E: Unable to locate package slurmctld"; exit 100; }}
    for name in {programs}; do cp {folder}/true {folder}/$name; done;;
esac
"""


@pytest.mark.parametrize("lacks", ["", "sbatch"])
@pytest.mark.parametrize("policy", ["", "#!/bin/sh\nexit 0\n"])
def test_packages_are_installed_without_services(
    lacks: str, policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an apt-get that knows no package before an update; a policy of the machine's own comes back."""
    own = tmp_path / "policy-rc.d"
    if policy:
        own.write_text(policy)
    wanted = ["slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd"]
    text = APT.format(policy=own, folder=tmp_path, programs=" ".join(name for name in wanted if name != lacks))
    program(tmp_path / "true", "exit 0")
    program(tmp_path / "apt-get", "PATH=/usr/bin:/bin\n" + text)
    monkeypatch.setattr(daemons, "PATH", str(tmp_path))
    monkeypatch.setattr(packages, "POLICY", own)
    if lacks:
        with pytest.raises(BadEnvironment, match="no sbatch, even after: apt-get install slurmctld"):
            packages.install(accounting=True)
    else:
        packages.install(accounting=True)
        packages.install(accounting=True)  # everything is there now
    said = (tmp_path / "said").read_text().replace("\n", " ")
    assert re.findall(r"-q (\w+)", said) == ["install", "update", "install"]
    assert said.count("exit 101") == 3 and "--no-install-recommends slurmctld slurmd slurm-client munge" in said
    assert (own.read_text() if own.exists() else "") == policy
    assert "installing slurmctld" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("policy*")) == (["policy-rc.d"] if policy else [])


def test_apt_get_that_fails_has_the_last_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "apt-get", "echo first; echo 'E: no network'; exit 100")
    monkeypatch.setattr(daemons, "PATH", str(tmp_path))
    monkeypatch.setattr(packages, "POLICY", tmp_path / "policy-rc.d")
    with pytest.raises(BadEnvironment, match="apt-get can't install Slurm: E: no network"):
        packages.install(accounting=False)
    assert not (tmp_path / "policy-rc.d").exists()


def test_an_installation_that_was_killed_has_not_lost_the_policy(tmp_path: Path) -> None:
    own = tmp_path / "policy-rc.d"
    own.write_text("the machine's")
    killed = packages.prevent_services(own)
    killed.__enter__()
    with packages.prevent_services(own):
        assert "101" in own.read_text()
    assert own.read_text() == "the machine's"
    del killed
