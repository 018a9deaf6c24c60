"""README, docs/ and the help pages are true: the doors take every command in them, links and paths lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from conf.argv import split
from conf.reading import points
from conf.reference import slug
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
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("conf/help/*.txt"))]
MARKDOWN = [path for room in ("*", "docs/**/*", "experiments/worked/**/*") for path in sorted(ROOT.glob(f"{room}.md"))]
START = r"(?:python|torchrun(?: --\S+)+)"


def commands() -> list[str]:
    """`python <door>.py …`, `torchrun … <door>.py …`, `python -m experiments …` in code blocks, tables and help pages,
    without explanation."""
    found: dict[str, None] = {}
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("$"):
                continue  # a session that shows an error
            line = line.partition("| ")[2].partition("| ")[2] if line.startswith("| ") else line  # not nanoGPT's own
            for match in re.finditer(rf"{START} (?:{'|'.join(map(re.escape, BY_COMMAND))})(?: [^`|#]*)?", line):
                command = re.split(r"\s{3,}|\s+# ", match[0])[0].strip()
                found[command.rstrip('")').strip() if "-sc" in command else command] = None
    return list(found)


@pytest.mark.parametrize("command", [c for c in commands() if "…" not in c and "-sc" not in c])
def test_commands_compose(command: str) -> None:
    _, door, *words = shlex.split(re.sub(START, "python", re.sub(MODULE, r"'\1'", command), count=1))
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
    found = commands()
    assert len(found) > 100 and any(one.startswith("torchrun") for one in found)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^):]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(slug, headings), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    rooms = "docs|experiments|launch|nanogpt|tests"
    for name in re.findall(rf"(?:`|\s)((?:{rooms})/[\w/.-]+\.(?:py|yaml|txt|md))\b", page.read_text()):
        assert (ROOT / name).exists(), name


CODE_SPANS = [*MARKDOWN, *sorted(ROOT.glob("docs/decisions/*.md"))]
RESULTS = ROOT / "experiments" / "worked"  # what machines wrote names the files of their runs


@pytest.mark.parametrize("page", CODE_SPANS, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_code_are_there(page: Path) -> None:
    """`nanogpt/model/gpt.py`, `launch/`, in the text of any page but the list of past changes."""
    if page.name == "CHANGELOG.md" or RESULTS in page.parents:
        return
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`((?:conf|docs|experiments|launch|nanogpt|tests)/[\w/.-]*)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("docs/decisions/*.md"))], ids=lambda page: page.name)
def test_pages_promise_the_same(page: Path) -> None:
    """A killed run goes on from its last checkpoint: steps after it are computed again, so something was lost."""
    assert not re.search(r"(?:never|nothing is|nothing was)(?: ever)? lost", page.read_text(), re.IGNORECASE)
    assert "nanogpt-lab[" not in page.read_text(), "is on no index: pip install -e '.[extra]'"


def test_messages_name_an_installation_that_works() -> None:
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for path in [*ROOT.glob("nanogpt/**/*.py"), *ROOT.glob("launch/**/*.py"), *ROOT.glob("conf/**/*.yaml")]:
        text = path.read_text()
        assert "nanogpt-lab[" not in text, path
        for extra in re.findall(r"pip install -e '\.\[(\w+)\]'", text):
            assert extra in extras, (path, extra)


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    codes = {kind.exit_code for kind in LabError.__subclasses__()} | {0, CODE, STOPPED}
    assert codes <= {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ["setup", "train", "test", "slow", "gpu-null", "lint", "types", "fmt", "bench", "clean", "help"]:
        assert re.search(rf"^{name}:.*##", makefile, re.MULTILINE), name
    for page in PAGES:
        for name in set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{page.name}: {name}"
