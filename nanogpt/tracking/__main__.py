"""The command of this room:  python -m nanogpt.tracking sync RUN…  (see sync --help)"""

import sys
from importlib import resources

from conf.door import dispatch, guarded
from conf.words import with_targets
from nanogpt.config import SyncConfig
from nanogpt.errors import BadInput, escaped


def main() -> None:
    """Hand the words after `sync` to its door; those that are no overrides are runs."""
    words = sys.argv[1:]
    if words[:1] != ["sync"]:
        guarded("sync", lambda: explain(words))
    sys.argv = [f"{sys.argv[0]} sync", *words[1:]]  # the door, and Hydra behind it, read them there
    guarded("sync", answer)


def answer() -> int:
    """`sync RUN… key=value…` with the runs as an override too."""
    sys.argv[1:] = with_targets(sys.argv[1:], "runs")
    return dispatch("sync", SyncConfig, sync, sys.argv[1:])


def explain(words: list[str]) -> int:
    """The page of the command, where it was asked for."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(resources.files("conf").joinpath("help/sync.txt").read_text().rstrip())
        return 0
    raise BadInput(f"{escaped(words[0])}: no such command; allowed: sync")


def sync(config: SyncConfig) -> int:
    """Bring every run up to date."""
    from nanogpt.syncing import sync_runs

    return sync_runs(config)


if __name__ == "__main__":
    main()
