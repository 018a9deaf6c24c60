"""Groups of a command and the choices in each, read from the files in conf/ without Hydra."""

from pathlib import Path

from nanogpt.errors import BadInput
from nanogpt.files import read_bytes

CONFIG_DIR = Path(__file__).parents[1] / "conf"
MAX_FILE_BYTES = 2**16  # most bytes of a YAML file


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
    names = (entry.name for entry in CONFIG_DIR.joinpath(group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def check_no_yaml_bomb(group: str, name: str) -> None:
    """Raise BadInput for a large file, or one with YAML aliases: ten lines of them can expand to a billion values."""
    path = CONFIG_DIR.joinpath(f"{group}/{name}.yaml")
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadInput(f"{group}={name}: its file can't be read: {error.strerror}") from None
    if b"&" in content and b"*" in content:
        import yaml

        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, Loader=yaml.SafeLoader)):
                raise BadInput(
                    f"{group}={name}: its file has an alias (*name), which is not supported; repeat the value"
                )
        except (yaml.YAMLError, RecursionError):
            return  # Hydra reports it
