"""Which config groups a command has and what can be chosen in each, read from the folders and without Hydra."""

from pathlib import Path

from nanogpt.errors import BadInput
from nanogpt.files import read_bytes

CONFIG_DIR = Path(__file__).parents[1] / "conf"
MAX_FILE_BYTES = 2**16  # bytes of a file; those that are here have a thousand


def groups(command: str) -> list[str]:
    """The groups in the defaults list of `conf/<command>.yaml`, in its order."""
    lines = CONFIG_DIR.joinpath(f"{command}.yaml").read_text().splitlines()
    named = [line.strip("- ").partition(":")[0] for line in lines if line.startswith("  - ") and ":" in line]
    return [name for name in named if CONFIG_DIR.joinpath(name).is_dir()]


def optional_groups(command: str) -> list[str]:
    """Those of the groups of which nothing need be chosen: `group: null` in the defaults list."""
    lines = CONFIG_DIR.joinpath(f"{command}.yaml").read_text().splitlines()
    return [name for name in groups(command) if f"  - {name}: null" in lines]


def choices(group: str) -> list[str]:
    """The YAML files of a group, by name."""
    names = (entry.name for entry in CONFIG_DIR.joinpath(group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def check_no_yaml_bomb(group: str, name: str) -> None:
    """A chosen file isn't large, and no line of it stands for others: ten such lines can mean a billion values.

    Raises BadInput.
    """
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
                    f"{group}={name}: its file has an alias (*name), which isn't read; write the value again"
                )
        except (yaml.YAMLError, RecursionError):
            return  # told by whoever reads it
