"""Groups of a command and the choices in each, read without Hydra from conf/ and from folders of the user."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from cli.quoting import format_override
from nanogpt.errors import BadInput, one_line
from nanogpt.files import read_bytes

CONFIG_DIR = Path(__file__).parents[1] / "conf"
USER_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("USER_FOLDERS", default=())
PATTERNS = ("*.yaml", "*/*.yaml", "*/*/*.yaml")  # files of commands, of groups, of hydra/launcher and hydra/sweeper
FOLDERS = "--config-dir or hydra.searchpath"
MAX_FILE_BYTES = 2**16  # most bytes of a YAML file


@contextmanager
def search_in(folders: Sequence[str]) -> Generator[None, None, None]:
    """Also find files in these folders while inside. Raises BadInput for a folder that can't be used."""
    found = USER_FOLDERS.get()
    for text in dict.fromkeys(folders):
        found = (*found, check_folder(text, found))
    token = USER_FOLDERS.set(found)
    try:
        yield
    finally:
        USER_FOLDERS.reset(token)


def check_folder(text: str, others: Sequence[Path]) -> Path:
    """Return the folder that `text`, a path or a file:// URL, names.

    Raises BadInput if it isn't there, has no file of a group, or has one that conf/ or a folder in `others` has too.
    """
    shown = one_line(text)
    if "://" in text and not text.startswith("file://"):
        raise BadInput(f"{FOLDERS}: {shown}: allowed: folders, as a path or file://PATH")
    folder = Path(text.removeprefix("file://")).expanduser().absolute()
    if not folder.is_dir():
        raise BadInput(f"{FOLDERS}: {shown}: no such folder")
    groups = sorted({str(path.parent.relative_to(CONFIG_DIR)) for p in PATTERNS[1:] for path in CONFIG_DIR.glob(p)})
    files = [path for group in groups for path in folder.joinpath(group).glob("*.yaml")]
    if not files:
        raise BadInput(f"{FOLDERS}: {shown}: has no YAML file in a folder of a group: {', '.join(groups)}")
    for known in (CONFIG_DIR, *others):
        names = [path.relative_to(known) for pattern in PATTERNS for path in known.glob(pattern)]
        if twice := next((name for name in names if folder.joinpath(name).exists()), None):
            raise BadInput(f"{one_line(folder / twice)}: {one_line(known)} has a file of this name; rename yours")
    for path in files:
        check_no_yaml_bomb(path, one_line(path))
    return folder


def search_overrides() -> list[str]:
    """Return the override that makes Hydra search the user's folders; none without any."""
    folders = [f"file://{folder}" for folder in USER_FOLDERS.get()]
    return [format_override("hydra.searchpath", folders)] if folders else []


def groups(command: str) -> list[str]:
    """Return the groups in the defaults list of `conf/<command>.yaml`, in its order."""
    lines = CONFIG_DIR.joinpath(f"{command}.yaml").read_text().splitlines()
    named = [line.strip("- ").partition(":")[0] for line in lines if line.startswith("  - ") and ":" in line]
    return [name for name in named if CONFIG_DIR.joinpath(name).is_dir()]


def optional_groups(command: str) -> list[str]:
    """Return the groups that need no choice: `group: null` in the defaults list."""
    lines = CONFIG_DIR.joinpath(f"{command}.yaml").read_text().splitlines()
    return [name for name in groups(command) if f"  - {name}: null" in lines]


def choices(group: str) -> list[str]:
    """Return the names of a group's YAML files, sorted."""
    folders = [folder / group for folder in (CONFIG_DIR, *USER_FOLDERS.get())]
    return sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))


def check_no_yaml_bomb(path: Path, shown: str) -> None:
    """Raise BadInput for a large file, or one with YAML aliases: ten lines of them can expand to a billion values."""
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadInput(f"{shown}: its file can't be read: {error.strerror}") from None
    if b"&" in content and b"*" in content:
        import yaml

        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, Loader=yaml.SafeLoader)):
                raise BadInput(f"{shown}: its file has an alias (*name), which is not supported; repeat the value")
        except (yaml.YAMLError, RecursionError):
            return  # Hydra reports it
