"""Which config groups a door has and what can be chosen in each, read from the folders and without Hydra."""

from importlib import resources


def groups(door: str) -> list[str]:
    """The groups in the defaults list of `conf/<door>.yaml`, in its order."""
    lines = resources.files("conf").joinpath(f"{door}.yaml").read_text().splitlines()
    named = [line.strip("- ").partition(":")[0] for line in lines if line.startswith("  - ") and ":" in line]
    return [name for name in named if resources.files("conf").joinpath(name).is_dir()]


def optional(door: str) -> list[str]:
    """Those of the groups of which nothing need be chosen: `group: null` in the defaults list."""
    lines = resources.files("conf").joinpath(f"{door}.yaml").read_text().splitlines()
    return [name for name in groups(door) if f"  - {name}: null" in lines]


def choices(group: str) -> list[str]:
    """The YAML files of a group, by name."""
    names = (entry.name for entry in resources.files("conf").joinpath(group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
