"""The command of a run that was finished with other values since, such as a longer horizon."""

from nanogpt.config import TrainConfig
from nanogpt.errors import BadCheckpoint, escaped
from nanogpt.run_directory import DIGEST, RunDirectory, differing, locate
from nanogpt.run_identity import resolve
from nanogpt.schema import change_of, leaves, values


def describe_later_changes(config: TrainConfig) -> str | None:
    """Return what to say when a later start changed this config's run and finished it; else None.

    Only changes that provenance.json records are explained: any other difference is refused as ever.
    """
    config = resolve(config)
    run = RunDirectory(locate(config))
    if config.resume.run is not None or config.fresh or run.status().get("state") != "finished":
        return None
    try:
        before, now = dict(values(run.config())), dict(values(config))
    except BadCheckpoint:
        return None
    kinds = {key: change_of(field) for key, field in leaves(TrainConfig)}
    changed = {key for key in differing(before, now) if kinds[key] != "free"}
    changed -= {"data.source"} if before[DIGEST] == now[DIGEST] is not None else set()
    explained: list[str] = []
    for number, start in enumerate(run.starts(), 1):
        changes = [one for one in start.get("changes") or [] if isinstance(one, str)]
        if made := [one for one in changes if one.partition(":")[0] in changed]:
            explained.append(f"start {number} ({escaped(start.get('time'), 40)}) changed {escaped(', '.join(made))}")
            changed -= {one.partition(":")[0] for one in made}
    if changed or not explained:
        return None
    return (
        f"finished already, at step {escaped(run.status().get('step'))} in {escaped(run.path)}: "
        f"{'; '.join(explained)}; fresh=true trains this command's values beside it"
    )
