"""Secrets of the environment are in nothing that is said, written, shown or handed over."""

import re
from pathlib import Path

import pytest

from nanogpt.schema import SECRET
from tests.conftest import ROOT
from tests.security.hostile import Person

SECRETS = {
    "WANDB_API_KEY": "ca9a1e00" * 5,
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanary",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+0123456789abcdefghijklmnop",
    "MY_PASSWORD": "canary of a person, with blanks",
}
WEAK = ["hydra.launcher.poll_s=0.2", "hydra.launcher.wait=true", "training.seed=1,2"]


class Searched:
    """Somebody with secrets in the environment; what commands say is kept."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.said = ""
        for name, value in SECRETS.items():
            person.patch.setenv(name, value)
        person.patch.setenv("HOME", str(person.folder))
        person.patch.setenv("PYTHONPATH", str(ROOT))

    def give(self, *words: str) -> str:
        done = self.person.give(*words)
        self.said += done.out + done.err
        assert done.code == 0, done
        return done.out

    def refuse_leaks(self, *folders: Path) -> list[Path]:
        """No secret is in what was said or in any file, in UTF-8 or UTF-16. Returns the files."""
        files = [path for folder in (self.person.folder, *folders) for path in folder.rglob("*") if path.is_file()]
        for where, content in [("output", self.said.encode()), *((path, path.read_bytes()) for path in files)]:
            for name, value in SECRETS.items():
                found = value.encode() in content or value.encode("utf-16-le") in content
                assert not found, f"{name} is in {where}"
        return files


@pytest.fixture
def searched(person: Person) -> Searched:
    return Searched(person)


def test_a_training(searched: Searched, words: list[str]) -> None:
    """With W&B offline; its files, the checkpoints, the provenance; what can be told of it, and exported."""
    pytest.importorskip("wandb")
    searched.give("train.py", *words, "name=mine", "tracking=wandb", "tracking.mode=offline")
    searched.give("-m", "nanogpt.export", "out=exported")
    searched.give("-m", "experiments", "list")
    searched.give("-m", "nanogpt.doctor", "checks=[python,disk,wandb]")
    files = searched.refuse_leaks()
    names = {path.suffix for path in files} | {path.name for path in files}
    assert names >= {
        ".wandb",
        "model.safetensors",
        "config.json",
        "provenance.json",
        "log.txt",
        "state.json",
        "loss.png",
    }


def test_a_study_and_its_report(searched: Searched, words: list[str]) -> None:
    """Of jobs, which inherit the environment."""
    searched.give("train.py", "-m", *words, "hydra/launcher=submitit_local", "name=study", *WEAK)
    searched.give("-m", "experiments", "report", "study")
    searched.give("-m", "launch", "logs", "study")
    names = {path.name for path in searched.refuse_leaks()}
    assert names >= {"submission.json", "points.jsonl", "report.html", "report.md", "pool.log", "0.jsonl"}
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))], "nothing is pickled for jobs"


def test_slurm(searched: Searched, slurm: Path, words: list[str]) -> None:
    """Neither in what a plan shows nor in what sbatch is given; Slurm hands the environment itself to jobs."""
    mine = [*words, "hydra/launcher=submitit_slurm", "hydra.launcher.wait=false", "name=study", "training.seed=1,2"]
    shown = searched.give("train.py", "-m", *mine, "plan=true")
    assert "2 to submit" in shown and not (searched.person.folder / "runs" / "study").exists()
    searched.give("train.py", "-m", *mine)
    (slurm / "environment.txt").unlink()
    assert {path.name for path in searched.refuse_leaks(slurm)} >= {"script.sh", "sbatch.txt"}


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_gets_into_a_config(name: str, searched: Searched) -> None:
    """By name, by a name within a name, with a default, quoted."""
    assert SECRET.search(name)
    for text in (
        f"${{oc.env:{name}}}",
        f"x${{oc.env:{name},y}}z",
        f"${{oc.env: '{name}'}}",
        f"${{oc.decode:${{oc.env:{name}}}}}",
    ):
        for key in ("data.hub", "init_from"):
            quoted = re.sub(r"'", r"\\'", text)
            done = searched.person.give("train.py", "plan=true", f"{key}='{quoted}'")
            assert done.code == 2 and SECRETS[name] not in done.out + done.err, done
