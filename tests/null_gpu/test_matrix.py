"""The trainings that run on the null GPU cover what they say; runs without it."""

from pathlib import Path

import pytest

from nanogpt.errors import BadInput
from tests.null_gpu.matrix import SHORT, all_choices, cover_pairs, is_allowed, name_of, overrides, pairs_of
from tests.tiny_config import tiny_config


def test_each_allowed_pair_occurs() -> None:
    found = set().union(*map(pairs_of, cover_pairs()))
    assert found == set().union(*(pairs_of(choices) for choices in all_choices() if is_allowed(choices)))
    assert len(cover_pairs()) <= 12


@pytest.mark.parametrize("choices", all_choices(), ids=name_of)
def test_allowed_is_what_the_config_allows(choices: dict[str, str]) -> None:
    words = [word.split("=") for word in overrides(choices) if word.startswith("hardware.")]
    values = {key: {"true": True, "false": False, "2": 2}.get(value, value) for key, value in words}
    given = {"hardware.devices": int(choices["ranks"]), "optimizer.name": choices["optimizer"]}
    try:
        tiny_config(Path(), Path(), **given | values)
    except BadInput:
        assert not is_allowed(choices)
    else:
        assert is_allowed(choices)


def test_the_short_form_has_each_choice_but_fp8() -> None:
    assert all(map(is_allowed, SHORT))
    found = {pair for choices in SHORT for pair in choices.items()}
    every = {pair for choices in all_choices() for pair in choices.items()}
    assert every - found == {("precision", "fp8")}
