"""docs/configuration.md is what the code says, and says all of it."""

import re
from pathlib import Path

import pytest

from cli.config_files import choices, groups
from cli.help import render_page, slug
from cli.sweep_keys import sweep_fields
from nanogpt.schema import iter_fields
from tests.cli_helpers import CONFIGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()


def test_the_file_is_what_would_be_written() -> None:
    assert render_page() == PAGE, "write it again: python -m cli.help > docs/configuration.md"


def test_the_page_has_every_key_and_every_file() -> None:
    listed = set(re.findall(r"^- `([^`]+)`:", PAGE, re.MULTILINE))
    keys = {key for kind in CONFIGS.values() for key, _ in iter_fields(kind)}
    keys |= {key for key in sweep_fields() if not key.endswith((".executor", ".method"))}
    files = {f"{group}={name}" for command in CONFIGS for group in groups(command) for name in choices(group)}
    files |= {f"hydra/{kind}={name}" for kind in ("launcher", "sweeper") for name in choices(f"hydra/{kind}")}
    assert listed == keys | files


def test_links_lead_to_headings() -> None:
    anchors = [slug(heading) for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= set(anchors)


def test_lines_are_short() -> None:
    assert max(map(len, PAGE.splitlines())) <= 120


@pytest.mark.parametrize(
    "entry",
    [
        """\
- `optimizer.lr`: peak learning rate; with muon or normuon, of the hidden matrices.
  Takes: number in (0, 10]; default `0.0006`; from files `0.005`; guarded.
""",
        """\
- `checkpoint.every`: steps between checkpoints.
  Takes: integer in [1, 2^53]; default `1000`; free.
""",
        """\
- `model=gpt2`: GPT-2 small, 124 M parameters, and the batch, horizon and learning rate that suit it (GPT-3 paper, table
  2.1).
""",
    ],
)
def test_an_entry_says_what_a_key_takes_and_whether_it_may_change(entry: str) -> None:
    assert entry in PAGE
