"""Names that would leave their folder, and values that would become lines of a batch script or commands of a shell."""

import os
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from cli import sweep_request
from cli.launcher_config import LocalLauncher, SlurmLauncher
from launch.study import plan_study
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput
from nanogpt.schema import check_value, iter_fields
from tests.cli_helpers import CONFIGS
from tests.security.hostile import Person

TRAVERSING = [
    "../x",
    "..",
    ".",
    "/x",
    "a/../../x",
    "a/b",
    "a\\b",
    "~",
    "~root",
    "-rf",
    "a\0",
    "a\n",
    "",
    "a.",
    "x" * 129,
]
BREAKING = [
    "a\nb",
    "a\n#SBATCH --wrap=x",
    "a\rb",
    "a\u2028b",
    "a\x85b",
    "a\0b",
    "a b",
    "a'b",
    'a"b',
    "`id`",
    "$(id)",
    "-x",
]
BREAKING += ["${IFS}", "a\\", "\x1b[2J", "", "x" * 501, "a\t", "a#\n"]


def checked_by(name: str, kind: type[BaseModel]) -> list[str]:
    """The keys of a schema whose texts go through a function."""
    return [key for key, field in iter_fields(kind) if f"function {name} " in f"{field.annotation} {field.metadata}"]


NAMES = [
    (command, key)
    for command, kind in CONFIGS.items()
    for key in checked_by("check_file_name", kind)
    if command not in ("sizing", "coordinates")
]
WORDS = checked_by("check_slurm_word", SlurmLauncher)


def test_all_names_are_found() -> None:
    assert {"name", "model.name", "data.name", "tracking.project"} <= {key for _, key in NAMES} and len(WORDS) > 12


@pytest.mark.parametrize(("command", "key"), NAMES)
def test_a_name_stays_in_its_folder(command: str, key: str) -> None:
    for name in TRAVERSING:
        with pytest.raises(BadInput, match=key) as error:
            check_value(CONFIGS[command], key, name)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("key", WORDS)
def test_a_slurm_field_stays_a_word(key: str) -> None:
    for text in BREAKING:
        with pytest.raises(BadInput, match=key) as error:
            check_value(SlurmLauncher, key, text)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a\n#SBATCH --wrap=x"),
        ("setup", ("a\nb",)),
        ("setup", ("a\rb",)),
        ("setup", ("",)),
        ("srun_args", ("--x\ny",)),
        ("srun_args", ("x",)),
        ("srun_args", ("--output=/etc/x",)),
        ("additional_parameters", {"wrap": "ls"}),
        ("additional_parameters", {"output": "/etc/x"}),
        ("additional_parameters", {"x\ny": "1"}),
        ("additional_parameters", {"x y": "1"}),
        ("additional_parameters", {"reservation": "a\nb"}),
        ("additional_parameters", {"reservation": {"_target_": "os.system"}}),
        ("additional_parameters", {"reservation": ["a"]}),
    ],
)
def test_lines_of_a_batch_script(key: str, value: object) -> None:
    with pytest.raises(BadInput, match=key):
        check_value(SlurmLauncher, key, value)
    if key in LocalLauncher.model_fields:
        with pytest.raises(BadInput, match=key):
            check_value(LocalLauncher, key, value)


def test_nothing_in_a_batch_script_is_run_or_becomes_an_option(person: Person, slurm: Path, words: list[str]) -> None:
    """The script is handed to a real shell, with all the punctuation that is allowed, in an odd folder."""
    folder = person.folder / "a b;'\"$(touch canary)`touch canary`&"
    (person.folder / "data").rename(person.folder / "kept")
    folder.mkdir()
    for name in ("corpus.txt", "kept"):
        (folder / name.replace("kept", "data")).symlink_to(person.folder / name)
    person.patch.chdir(folder)
    odd = "a;b&c|d(e)*~{f}[g]=%"
    text = '--x=$(touch canary)`touch canary`;touch canary #\\"'
    mine = [f"hydra.launcher.{key}='{odd}'" for key in ("partition", "account", "comment", "constraint", "nodelist")]
    mine += [f"hydra.launcher.srun_args=['{text}']", f"hydra.launcher.additional_parameters={{reservation:'{odd}'}}"]
    done = person.give(
        "train.py", "-m", *words, "hydra/launcher=submitit_slurm", "hydra.launcher.wait=false", "name=odd", *mine
    )
    assert done.code == 0, done
    script = (slurm / "script.sh").read_text()
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert options == [line for line in script.splitlines()[: 3 + len(options)] if line.startswith("#SBATCH")]
    assert len(options) == len({line.partition("=")[0] for line in options}) and f"#SBATCH --comment='{odd}'" in options
    job = os.environ | {"SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "0"}
    ran = subprocess.run(
        ["bash", str(slurm / "script.sh")], cwd=folder, env=job, capture_output=True, text=True, timeout=100
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    given = (slurm / "srun.txt").read_text().splitlines()
    assert text in given and str(folder / "runs" / "odd" / ".launch" / "1") in given
    assert not list(person.folder.rglob("canary")) and not (folder / "canary").exists()


def test_points_stay_in_the_folder_of_their_study(person: Person, words: list[str]) -> None:
    for mine in (
        ["sweep.points=[{runs_dir:../../evil,training.seed:1},{runs_dir:/tmp/evil,training.seed:2}]"],
        ["data.source=../../x/y,/etc/passwd"],
        ["tracking.group='../x'", "training.seed=1,2"],
    ):
        own = {one.partition("=")[0] for one in mine}
        rest = [word for word in words if word.partition("=")[0] not in own]
        study = plan_study(sweep_request.read_sweep("train", TrainConfig, [*rest, *mine], multirun=True))
        for member in study.runs:
            assert (
                member.path.resolve().parent == study.path.resolve() and member.path.name == Path(member.path.name).name
            )
            assert Path(member.config.runs_dir) == study.path
    assert not (person.folder.parent / "evil").exists()


def test_an_export_replaces_nothing_but_an_export(person: Person) -> None:
    Path("precious").mkdir()
    Path("precious/file").write_text("x")
    for out in ("precious", ".", "..", "runs", "data", "/", "precious/file", "precious/../precious"):
        assert person.refused("-m", "cli", "export", f"out={out}", "overwrite=true") in (2, 5)
    assert Path("precious/file").read_text() == "x" and Path("corpus.txt").exists() and Path("runs").is_dir()
