"""README, docs/ and the help pages are true: the commands take every word in them, links and paths lead somewhere."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from cli.argv import split_flags
from cli.commands import COMMANDS, JOBS
from cli.crash_report import EXIT_CODE
from cli.help import slug
from cli.sweep_request import read_configs
from nanogpt.errors import STOPPED, LabError
from tests.cli_helpers import CONFIGS

ROOT = Path(__file__).parents[1]
BY_COMMAND = {
    f"python {command.script}" if command.script else f"nanogpt {name}": ("launch" if command.group == JOBS else name)
    for name, command in COMMANDS.items()
} | {f"nanogpt {name}": name for name, command in COMMANDS.items() if command.script}
BY_COMMAND["nanogpt submit"] = "train"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("cli/help_texts/*.txt"))]
MARKDOWN = [path for name in ("*", "docs/**/*", "experiments/worked/**/*") for path in sorted(ROOT.glob(f"{name}.md"))]
TORCHRUN = r"torchrun(?: --\S+)+"


def commands() -> list[str]:
    """Commands in code blocks, tables and help pages, without explanation: `python train.py …`, `nanogpt report …`."""
    found: dict[str, None] = {}
    start = "|".join(map(re.escape, BY_COMMAND)) + rf"|{TORCHRUN} (?:train|evaluate)\.py"
    for page in PAGES:
        for line in re.sub(r"\s*\\\n\s*", " ", page.read_text()).splitlines():  # join continued lines
            if line.startswith("$"):
                continue  # a session that shows an error
            line = line.partition("| ")[2].partition("| ")[2] if line.startswith("| ") else line  # not nanoGPT's own
            for match in re.finditer(rf"(?<![\w/-])(?:{start})(?![\w/-])(?: [^`|#]*)?", line):
                command = re.split(r"\s{3,}|\s+# ", match[0])[0].strip()
                found[command.rstrip('")').strip() if "-sc" in command else command] = None
    return list(found)


@pytest.mark.parametrize("command", [c for c in commands() if "…" not in c and "-sc" not in c])
def test_commands_compose(command: str) -> None:
    program, subcommand, *words = shlex.split(re.sub(TORCHRUN, "python", command, count=1))
    if "--help" in words:
        return  # asked for in test_compose
    name = BY_COMMAND[f"{program} {subcommand}"]
    words = [word for word in words if word != "STUDY|RUN"]
    flags, overrides = split_flags(COMMANDS[name].collect_words(words) if name in COMMANDS else words)
    if name == "launch":
        overrides = [word if "=" in word else f"target={word}" for word in overrides]
    if subcommand == "submit":  # its default
        overrides.append("hydra/launcher=submitit_slurm")
    kind = CONFIGS[name]
    assert read_configs(name, kind, overrides, multirun="-m" in flags)


def test_there_are_commands() -> None:
    found = commands()
    assert len(found) > 100 and any(one.startswith("torchrun") for one in found)


def test_links_and_pictures_are_there() -> None:
    for page in MARKDOWN:
        for target in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            there = page.parent / name if name else page
            assert there.exists(), (page, target)
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in map(slug, headings), (page, target)


def test_files_that_are_named_are_there() -> None:
    folders = "cli|docs|experiments|launch|nanogpt|tests"
    for page in PAGES:
        for name in re.findall(rf"(?:`|\s)((?:{folders})/[\w/.-]+\.(?:py|yaml|txt|md))\b", page.read_text()):
            assert (ROOT / name).exists(), (page, name)


CODE_SPANS = [*MARKDOWN, *sorted(ROOT.glob("docs/decisions/*.md"))]
RESULTS = ROOT / "experiments" / "worked"  # what machines wrote names the files of their runs


def test_paths_in_code_are_there() -> None:
    """`nanogpt/model/gpt.py`, `launch/`, in the text of any page but the list of past changes."""
    for page in CODE_SPANS:
        if page.name == "CHANGELOG.md" or RESULTS in page.parents:
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for name in re.findall(r"`((?:cli|conf|docs|experiments|launch|nanogpt|tests)/[\w/.-]*)`", text):
            assert (ROOT / name).exists(), (page, name)


def defined_names(path: Path) -> set[str]:
    """Return the functions, classes and variables that a module defines."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


FILE = r"`((?:cli|experiments|launch|nanogpt|tests)/[\w/]+\.py)`"


def test_names_beside_a_file_are_defined_in_it() -> None:
    """`launch/slurm.py`, `submit_array`, or `Tokenizer` in `nanogpt/tokenizer.py`."""
    pairs: list[tuple[Path, str, str]] = []
    for page in CODE_SPANS:
        text = page.read_text()
        for path, names in re.findall(rf"{FILE},\s((?:`\w+`(?:, )?)+)", text):
            pairs += [(page, path, name) for name in re.findall(r"`(\w+)`", names)]
        pairs += [(page, path, name) for name, path in re.findall(rf"`(\w+)`\sin\s+{FILE}", text)]
    assert len(pairs) > 15
    for page, path, name in pairs:
        assert name in defined_names(ROOT / path), (page, path, name)


FOREIGN = {"NCCL_IB_HCA", "lambada_perplexity", "acc_stderr", "score_mod"}  # of NCCL, lm-evaluation-harness, torch


def test_identifiers_in_pages_exist() -> None:
    """Code spans such as `TrackerBackend`, `checkpoint.keep_every` or `free()` name something in the code."""
    folders = ("cli", "conf", "experiments", "launch", "nanogpt", "tests", ".ci")
    files = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*") if path.suffix in (".py", ".yaml")]
    files += [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    known = {word for path in files if path != Path(__file__) for word in re.findall(r"\w+", path.read_text())}
    stems = {path.stem for path in files}
    for page in {*PAGES, *CODE_SPANS} - {ROOT / "CHANGELOG.md"}:
        if page.suffix != ".md" or RESULTS in page.parents:
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for name, call in re.findall(r"`([A-Za-z]\w*(?:\.\w+)*)(\([^`]*\))?`", text):
            if name.endswith((".ipynb", ".md")) or not (call or re.search(r"_|[a-z][A-Z]|^[A-Z][a-z]", name)):
                continue
            missing = set(name.split(".")) - known - stems - FOREIGN
            assert not missing, (page, name)


def test_lines_are_short() -> None:
    """At most 120 characters; a longer word, such as an address, has its line to itself."""
    pages = {*PAGES, *CODE_SPANS, *ROOT.glob("tests/**/README.md"), *ROOT.glob("conf/**/*.yaml")}
    for page in pages:
        if RESULTS in page.parents and page.name != "README.md":
            continue  # written by `nanogpt report`
        for number, line in enumerate(page.read_text().splitlines(), 1):
            assert len(line) <= 120 or " " not in line.strip(), (page, number, len(line))


def test_pages_promise_the_same() -> None:
    """A killed run goes on from its last checkpoint: steps after it are computed again, so something was lost."""
    for page in [*PAGES, *sorted(ROOT.glob("docs/decisions/*.md"))]:
        assert not re.search(r"(?:never|nothing is|nothing was)(?: ever)? lost", page.read_text(), re.IGNORECASE), page
        assert not re.search(r"nanogpt-lab\[\w+\](?! @ file:)", page.read_text()), "is on no index"


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    codes = {kind.exit_code for kind in LabError.__subclasses__()} | {0, EXIT_CODE, STOPPED}
    assert codes <= {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ["setup", "train", "test", "slow", "gpu-null", "lint", "types", "fmt", "bench", "clean", "help"]:
        assert re.search(rf"^{name}:.*##", makefile, re.MULTILINE), name
    for page in PAGES:
        for name in set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{page.name}: {name}"
