"""Runs that a command may mean although their values differ."""

from contextlib import suppress
from pathlib import Path

from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.entry_names import parse_run_name
from nanogpt.errors import BadCheckpoint, one_line
from nanogpt.run_directory import RunDirectory, locate_run, newest_change
from nanogpt.run_identity import CONTENTS, changed_keys, keys_of_same_content, resolve_digests
from nanogpt.schema import change_policy, iter_fields, iter_values


def describe_later_changes(config: TrainConfig) -> str | None:
    """Return a message if a later start changed the values of this config's run and finished it, else None.

    Only changes recorded in provenance.json are explained; any other difference is an error later.
    """
    config = resolve_digests(config)
    run = RunDirectory(locate_run(config))
    if config.resume.run is not None or config.new_attempt or run.read_status().get("state") != "finished":
        return None
    try:
        before, now = dict(iter_values(run.read_config())), dict(iter_values(config))
    except BadCheckpoint:
        return None
    kinds = {key: change_policy(field) for key, field in iter_fields(TrainConfig)}
    changed = {key for key in changed_keys(before, now) if kinds[key] != "free"}
    changed -= keys_of_same_content(before, now)
    explained: list[str] = []
    for number, start in enumerate(run.read_starts(), 1):
        changes = [change for change in start.get("changes") or [] if isinstance(change, str)]
        if made := [change for change in changes if change.partition(":")[0] in changed]:
            explained.append(f"start {number} ({one_line(start.get('time'), 40)}) changed {one_line(', '.join(made))}")
            changed -= {change.partition(":")[0] for change in made}
    if changed or not explained:
        return None
    return (
        f"finished already, at step {one_line(run.read_status().get('step'))} in {one_line(run.path)}: "
        f"{'; '.join(explained)}; new_attempt=true trains this command's values beside it"
    )


def find_related_run(config: TrainConfig) -> tuple[Path, list[str]] | None:
    """Return the newest similar run of the same name and the keys that differ: guarded ones, or only a digest.

    A digest differs if the same path had other content.
    """
    config = resolve_digests(config)
    here, kinds = (
        locate_run(config),
        {key: schema.change_policy(field) for key, field in schema.iter_fields(TrainConfig)},
    )
    now = dict(schema.iter_values(config))
    found = [
        path.parent
        for path in here.parent.glob("*/config.json")
        if path.parent != here and (parts := parse_run_name(path.parent.name)) and parts[0] == config.run_name
    ]
    for path in sorted(found, key=newest_change, reverse=True)[:20]:
        with suppress(BadCheckpoint):
            before = dict(schema.iter_values(RunDirectory(path).read_config()))
            same = keys_of_same_content(before, now)
            changed = [key for key in changed_keys(before, now) if kinds[key] != "free" and key not in same]
            if changed and all(kinds[key] == "guarded" for key in changed):
                return path, changed
            other = [digest for digest in CONTENTS.values() if before[digest] != now[digest]]
            if changed == other[:1] or (not changed and other):
                return path, other[:1]
    return None
