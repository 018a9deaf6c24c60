"""The command of this room:  python -m nanogpt.tracking sync RUN…  (see sync --help)"""

import sys

from conf.door import command_of, dispatch, guarded
from conf.words import with_targets
from nanogpt.config import SyncConfig


def main() -> None:
    """Hand the words after `sync` to its door; those that are no overrides are runs."""
    command_of("sync", ("sync",))
    guarded("sync", answer)


def answer() -> int:
    """`sync RUN… key=value…` with the runs as an override too."""
    sys.argv[1:] = with_targets(sys.argv[1:], "runs")
    return dispatch("sync", SyncConfig, sync, sys.argv[1:])


def sync(config: SyncConfig) -> int:
    """Bring every run up to date."""
    from nanogpt.syncing import sync_runs

    return sync_runs(config)


if __name__ == "__main__":
    main()
