"""The best setting of a ranking: how sure it is, whether the best may lie beyond, and the command that repeats it."""

from collections.abc import Iterator, Sequence

from experiments.document import Block, Code, Note
from experiments.metrics import METRIC_WORDS
from experiments.ranking import Ranking, VariedKey
from experiments.reproduce import reproduce_command
from experiments.statistics import welch_test
from experiments.tables import group_label
from nanogpt import schema
from nanogpt.config import TrainConfig
from nanogpt.errors import one_line
from nanogpt.metrics_file import as_number

MAX_TESTED = 5  # settings next to the best that are tested against it


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
    yield from (note for note in (equal_note(ranking, varied), edge_note(ranking, varied)) if note)
    command = reproduce_command(result.config)
    if command is None:
        yield Note(f"No command line reproduces it exactly; its config: {one_line(result.path / 'config.json')}.")
        return
    seed = f", with seed {result.config.training.seed}" if len(setting.results) > 1 else ""
    yield Note(f"Command that trains it again{seed}:")
    yield Code(command)


def equal_note(ranking: Ranking, varied: Sequence[VariedKey]) -> Note | None:
    """Return a note on settings next to the best that seeds can't distinguish from it."""
    first, *others = ranking.ranked
    words: list[str] = []
    for other in others[:MAX_TESTED]:
        found = welch_test(other.losses(ranking.metric), first.losses(ranking.metric))
        if found and not found.significant:
            words.append(f"{group_label(other, varied)} ({found.mean:+.4f}, p={found.p:.2g})")
    return Note(f"Not significantly better than {', '.join(words)} (Welch's test over the seeds).") if words else None


def edge_note(ranking: Ranking, varied: Sequence[VariedKey]) -> Note | None:
    """Return a note on values of the best setting at the edge of what was tried."""
    fields = dict(schema.iter_fields(TrainConfig))
    words: list[str] = []
    for axis in varied:
        values = [axis.value(setting) for setting in ranking.ranked]
        numbers = [number for value in values if (number := as_number(value)) is not None]
        if axis.key.startswith("training.") or len(numbers) < len(values) or len(set(numbers)) < 2:
            continue  # more training is always better
        best, limits = numbers[0], [getattr(limit, "ge", None) for limit in fields[axis.key].metadata]
        if best in (min(numbers), max(numbers)) and best not in limits:
            words.append(f"{axis.key}={best:g} is the {'lowest' if best == min(numbers) else 'highest'}")
    return Note(f"{' and '.join(words)} value tried: the best may lie beyond.") if words else None
