"""Settings and code of the runs of a report: what varied, what all have in common, and which code they used."""

from collections.abc import Iterator, Sequence

from experiments.code_diff import code_table
from experiments.document import Block, Code, Heading, Note
from experiments.ranking import LABELS, SeedGroup, find_varied_keys, identity_values
from experiments.reproduce import RUN_KEYS
from experiments.results import RunResult
from experiments.tables import along_table, differing_keys
from nanogpt import schema
from nanogpt.formatting import format_value


def settings_blocks(results: Sequence[RunResult], groups: Sequence[SeedGroup]) -> Iterator[Block]:
    """Yield what varied, what all runs share, and which code they used."""
    yield Heading("Settings and code")
    together = find_varied_keys(groups)
    if along := along_table(groups, together):
        yield along
    varied = {key for axis in together for key in (axis.key, *axis.others)}
    effect = {*identity_values(results[0].config), *RUN_KEYS, *LABELS.values()}
    others = [key for key in differing_keys([result.config for result in results]) if key not in effect]
    if others:
        yield Note(f"These differ too, without an effect on results: {', '.join(others)}.")
    yield Code(common_settings(results, varied), "What all runs have in common")
    code = code_table(results)
    if code:
        if len(code.rows) > 1:
            yield Note("Not all runs used the same code and the same kind of machine.", warning=True)
        yield code


def common_settings(results: Sequence[RunResult], varied: set[str]) -> str:
    configs = [dict(schema.iter_values(result.config)) for result in results]
    same = [
        key for key in configs[0] if len({format_value(config[key]) for config in configs}) == 1 and key not in varied
    ]
    return "\n".join(f"{key}={format_value(configs[0][key])}" for key in same if key not in RUN_KEYS)
