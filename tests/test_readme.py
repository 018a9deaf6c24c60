"""README and the help pages are true: every command in them is one that the doors take, every path is there."""

import re
import shlex
from pathlib import Path

import pytest

from conf.door import split
from conf.reading import points
from conf.unforeseen import CODE
from conf.words import with_targets
from experiments.__main__ import ABOUT_RUNS, QUESTIONS
from nanogpt.errors import STOPPED, LabError
from tests.doors import DOORS

ROOT = Path(__file__).parents[1]
COMMANDS = {"export": "-m nanogpt.export", "doctor": "-m nanogpt.doctor", "sync": "-m nanogpt.tracking sync"}
COMMANDS |= {name: f"-m experiments {name}" for name in (*QUESTIONS, *ABOUT_RUNS)}
JOBS = ("status", "logs", "wait", "cancel", "retry", "resubmit")
BY_COMMAND = {f"-m launch {word}": ("launch", DOORS["launch"]) for word in JOBS} | {
    "-m launch submit": ("train", DOORS["train"])
}
BY_COMMAND |= {COMMANDS.get(name, f"{name}.py"): (name, kind) for name, kind in DOORS.items() if name != "launch"}
MODULE = r"(-m (?:nanogpt\.export|nanogpt\.doctor|nanogpt\.tracking sync|(?:experiments|launch) \w+))"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("conf/help/*.txt"))]


def commands() -> list[str]:
    """`python <door>.py …`, `python -m experiments …` in code blocks, tables and help pages, without explanation."""
    found: dict[str, None] = {}
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("$"):
                continue  # a session that shows an error
            line = line.partition("| ")[2].partition("| ")[2] if line.startswith("| ") else line  # not nanoGPT's own
            for match in re.finditer(rf"python (?:{'|'.join(map(re.escape, BY_COMMAND))})(?: [^`|#]*)?", line):
                command = re.split(r"\s{3,}|\s+# ", match[0])[0].strip()
                found[command.rstrip('")').strip() if "-sc" in command else command] = None
    return list(found)


@pytest.mark.parametrize("command", [c for c in commands() if "…" not in c and "-sc" not in c])
def test_commands_compose(command: str) -> None:
    _, door, *words = shlex.split(re.sub(MODULE, r"'\1'", command))
    if "--help" in words:
        return  # asked for in test_compose
    name, kind = BY_COMMAND[door]
    words = [word for word in words if word != "STUDY|RUN"]
    keys = dict.fromkeys(ABOUT_RUNS, "targets") | {"sync": "runs"}
    flags, overrides = split(with_targets(words, keys[name]) if name in keys else words)
    if name == "launch":
        overrides = [word if "=" in word else f"target={word}" for word in overrides]
    if door == "-m launch submit":  # its default
        overrides.append("hydra/launcher=submitit_slurm")
    assert points(name, kind, overrides, multirun="-m" in flags)


def test_there_are_commands() -> None:
    assert len(commands()) > 15


def test_links_and_pictures_are_there() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    codes = {kind.exit_code for kind in LabError.__subclasses__()} | {0, CODE, STOPPED}
    assert codes <= {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ["setup", "train", "test", "slow", "lint", "types", "fmt", "bench", "clean", "help"]:
        assert re.search(rf"^{name}:.*##", makefile, re.MULTILINE), name
    for name in set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
