"""Secrets of the environment are in nothing that is said, written, shown or handed over."""

import re
from pathlib import Path

import pytest

from nanogpt.redaction import HIDDEN, find_secret, is_secret_name, redact, redact_all
from tests.conftest import ROOT
from tests.security.hostile import Person

SECRETS = {
    "WANDB_API_KEY": "ca9a1e00" * 5,
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanary",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+0123456789abcdefghijklmnop",
    "MY_PASSWORD": "canary of a person, with blanks",
    "GITHUB_PAT": "canary-pat-0123456789",
    "MY_PWD": "canarycanary",
    "AUTH": "canary:auth:0123456789",
    "DATABASE_URL": "postgresql://canary:canary-db-secret@example.org/db",
}
WEAK = ["hydra.launcher.poll_s=0.2", "hydra.launcher.wait=true", "training.seed=2"]


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


def test_a_training(searched: Searched, words: list[str], pictures: None) -> None:
    """With W&B offline; its files, the checkpoints, the provenance; what can be told of it, and exported."""
    pytest.importorskip("wandb")
    searched.give("train.py", *words, "name=mine", "tracking=wandb", "tracking.mode=offline")
    searched.give("-m", "cli", "export", "out=exported")
    searched.give("-m", "experiments", "list")
    searched.give("-m", "cli", "doctor", "checks=[python,disk,wandb]")
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


@pytest.mark.slow
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
    shown = searched.give("train.py", "-m", *mine, "dry_run=true")
    assert "2 to submit" in shown and not (searched.person.folder / "runs" / "study").exists()
    searched.give("train.py", "-m", *mine)
    (slurm / "environment.txt").unlink()
    assert {path.name for path in searched.refuse_leaks(slurm)} >= {"script.sh", "sbatch.txt"}


FORMS = {
    "hf": "hf_" + "Ab1" * 10,
    "github": "ghp_" + "Ab1" * 12,
    "github_pat": "github_pat_" + "Ab1_" * 10,
    "gitlab": "glpat-" + "Ab1-" * 5,
    "openai": "sk-proj-" + "Ab1" * 12,
    "anthropic": "sk-ant-api03-" + "Ab1" * 12,
    "aws": "AKIA" + "ABCD1234" * 2,
    "slack": "xoxb-" + "1234567890-" * 2 + "abc",
    "google": "AIza" + "Ab1-_" * 7,
    "jwt": "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----",
    "url": "https://user:passw0rd@example.org/x",
    "header": "Bearer " + "Ab1" * 10,
}
PLAIN = [
    "risk-averse-learning-rate-sweep-2024",
    "sk-learn-baseline-run-2024-with-more-words",
    "https://example.org/a:b@c",
    "hf://datasets/name",
    "optimizer.lr=1e-3",
    "eyJ",
    "runs/keyed-dropout-0123abcd",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
]


@pytest.mark.parametrize("form", FORMS)
def test_token_forms_are_refused_and_hidden(form: str, person: Person, words: list[str]) -> None:
    """Typed as a value, as a key, as a flag: exit 2, and what was typed isn't repeated."""
    token = FORMS[form]
    assert find_secret(f"a {token} b") and token not in redact(f"a {token} b")
    typed = "'" + token + "'"
    for text in (f"tracking.project={typed}", f"data.hub={typed}", f"name={typed}", f"tracking.tags=[{typed}]"):
        done = person.give("train.py", *words, text)
        assert done.code == 2 and token not in done.out + done.err and token[:24] not in done.err, done
        assert done.err.count("\n") == 1
    for text in (f"--{token}", f"x={typed}", f"optimizer.lr={typed}", token):
        done = person.give("train.py", text)
        assert done.code == 2 and token[:24] not in done.out + done.err, done


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_texts_stay(text: str) -> None:
    assert find_secret(text) is None and redact(text) == text


NAMES = [
    "HF_TOKEN",
    "GITHUB_PAT",
    "MY_PWD",
    "AUTH",
    "DB_PASS",
    "SENTRY_DSN",
    "MY_COOKIE",
    "APP_SESSION",
    "SSH_PASSPHRASE",
]
ORDINARY = [
    "PWD",
    "OLDPWD",
    "PATH",
    "TIKTOKEN_CACHE_DIR",
    "TOKENIZERS_PARALLELISM",
    "XDG_SESSION_TYPE",
    "SSH_AUTH_SOCK",
]
ORDINARY += ["GIT_AUTHOR_NAME", "MAX_TOKENS", "HOME", "HF_HOME", "HF_TOKEN_PATH"]


def test_a_long_word_is_searched() -> None:
    """In a time that grows with its length; with its square this would be a hang."""
    assert redact("x" * 3_000_000) == "x" * 3_000_000
    assert find_secret("x" * 3_000_000 + "://user:canary@host") == "a login in an address"


def test_names_of_variables() -> None:
    assert [name for name in NAMES if not is_secret_name(name)] == []
    assert [name for name in ORDINARY if is_secret_name(name)] == []


def test_everything_nested_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "canary-0123")
    facts = {"command": ["train.py", "name=canary-0123"], "git": {"diff": "+x canary-0123"}, "pid": 1, "none": None}
    assert redact_all(facts) == {
        "command": ["train.py", f"name={HIDDEN}"],
        "git": {"diff": f"+x {HIDDEN}"},
        "pid": 1,
        "none": None,
    }


PIECES = """# @package _global_
tracking:
  tags: ['$', '{oc.', 'env:HF_TOKEN}']
  group: "${oc.decode:'${tracking.tags[0]}${tracking.tags[1]}${tracking.tags[2]}'}"
"""
WAYS = [
    PIECES,
    "# @package _global_\ntracking: {group: '${oc.create:{a: 1}}'}\n",
    "# @package _global_\ntracking: {group: '${oc.env:HOME,${oc.env:HF_TOKEN}}'}\n",
    "# @package _global_\ntracking: {group: '${oc.env:MY${name}}'}\n",
    "# @package _global_\ntracking: {group: '${oc.deprecated:name}'}\n",
    "# @package _global_\nname: oc.env\ntracking: {group: '${${name}:HF_TOKEN}'}\n",
    "# @package _global_\nsweep: {grid: {tracking.group: ['${oc.env:HF_TOKEN}', b]}}\n",
    "# @package _global_\nhydra: {launcher: {comment: '${oc.env:HF_TOKEN}'}}\n",
    "# @package _global_\ndefaults: [override /data: '${oc.env:HF_TOKEN}']\n",
    "# @package _global_\ntracking: {group: " + SECRETS["MY_PASSWORD"] + "}\n",
]


@pytest.mark.parametrize("text", WAYS)
def test_no_way_through_an_experiment_file(text: str, searched: Searched, experiment: Path) -> None:
    """Case 23: joined from pieces, computed, nested, within a sweep, in the defaults list, or written out."""
    experiment.write_text(text)
    others = (["--cfg", "job"], ["-m", "training.seed=1,2", "dry_run=true"]) if text in WAYS[:2] else ()
    for words in (["dry_run=true"], *others):  # which read the same config
        done = searched.person.give("train.py", "experiment=mine", *words)
        assert done.code == 2 and "canary" not in (done.out + done.err).lower(), done
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_gets_into_a_config(name: str, searched: Searched) -> None:
    """By name, by a name within a name, with a default, quoted."""
    assert is_secret_name(name) or name.endswith("_URL")
    for text in (
        f"${{oc.env:{name}}}",
        f"x${{oc.env:{name},y}}z",
        f"${{oc.env: '{name}'}}",
        f"${{oc.decode:${{oc.env:{name}}}}}",
    ):
        for key in ("data.hub", "init_from"):
            quoted = re.sub(r"'", r"\\'", text)
            done = searched.person.give("train.py", "dry_run=true", f"{key}='{quoted}'")
            assert done.code == 2 and SECRETS[name] not in done.out + done.err, done
