"""The best setting of a ranking: how sure it is, whether the best may lie beyond, and the command that repeats it."""

from collections.abc import Iterator, Sequence

from experiments.document import Block, Code, Note
from experiments.metrics import METRIC_WORDS
from experiments.ranking import Ranking, VariedKey
from experiments.reproduce import reproduce_command
from experiments.tables import group_label
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.errors import one_line
from nanogpt.metrics_file import as_number
from nanogpt.verdicts import describe_verdict

MAX_NAMED = 5  # settings not told apart from the best


def best_blocks(ranking: Ranking, varied: Sequence[VariedKey]) -> Iterator[Block]:
    """Yield the best setting and the command that repeats it."""
    setting = ranking.best
    if setting is None:
        yield Note("Every finished run diverged." if ranking.ranked else "No run is finished yet.")
        return
    result = next(result for result in setting.finished if result.trouble is None or not result.trouble.diverged)
    loss = setting.loss(ranking.metric)
    assert loss is not None, "it is ranked"
    spread = f" ± {loss.half:.4f} over {loss.n} seeds" if loss.half is not None else " (one seed)"
    yield Note(f"{group_label(setting, varied)}: {METRIC_WORDS[ranking.metric]} is {loss.mean:.4f}{spread}.")
    yield from verdict_notes(ranking, varied)
    if beyond := edge_note(ranking, varied):
        yield beyond
    command = reproduce_command(result.config)
    if command is None:
        yield Note(f"No command line reproduces it exactly; its config: {one_line(result.path / 'config.json')}.")
        return
    seed = f", with seed {result.config.training.seed}" if len(setting.results) > 1 else ""
    yield Note(f"Command that trains it again{seed}:")
    yield Code(command)


def verdict_notes(ranking: Ranking, varied: Sequence[VariedKey]) -> Iterator[Note]:
    """Yield how good the best is without luck, and what can't be told apart from it."""
    verdicts = ranking.verdicts
    if verdicts is None or verdicts.corrected_mean is None:
        return
    others = zip(ranking.fair, verdicts.verdicts, strict=True)
    alike = [(group_label(setting, varied), v) for setting, v in others if v.kind in ("undecided", "equivalent")]
    if alike:
        words = [f"{name} ({describe_verdict(verdict)})" for name, verdict in alike[:MAX_NAMED]]
        more = f" and {len(alike) - MAX_NAMED} more" if len(alike) > MAX_NAMED else ""
        yield Note(
            f"It may owe its place to luck: {', '.join(words)}{more}. Without the luck of having been chosen as the "
            f"best of these, {verdicts.corrected_mean:.4f} is to be expected of it."
        )
    else:
        yield Note(
            f"Every other setting is worse. With other seeds, {verdicts.corrected_mean:.4f} is to be expected of it."
        )


def edge_note(ranking: Ranking, varied: Sequence[VariedKey]) -> Note | None:
    """Return a note on values of the best setting at the edge of what was tried."""
    words = [
        f"{axis.key}={numbers[0]:g} is the {'lowest' if numbers[0] == min(numbers) else 'highest'}"
        for axis, numbers in find_edges(ranking, varied)
    ]
    return Note(f"{' and '.join(words)} value tried: the best may lie beyond.") if words else None


def find_edges(ranking: Ranking, varied: Sequence[VariedKey]) -> Iterator[tuple[VariedKey, list[float]]]:
    """Yield the keys in which the best setting is at the edge, with the values that were tried, the best's first."""
    fields = dict(schema.iter_fields(TrainConfig))
    for axis in varied:
        values = [axis.value(setting) for setting in ranking.ranked]
        numbers = [number for value in values if (number := as_number(value)) is not None]
        if axis.key.startswith("training.") or len(numbers) < len(values) or len(set(numbers)) < 2:
            continue  # more training is always better
        limits = [getattr(limit, "ge", None) for limit in fields[axis.key].metadata]
        if numbers[0] in (min(numbers), max(numbers)) and numbers[0] not in limits:
            yield axis, numbers
