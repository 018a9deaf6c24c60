"""Which results are comparable, in which unit, and what is said where they are not."""

import dataclasses
from pathlib import Path

import pytest

from nanogpt.comparability import agree_in_nats, best_step, compare_measurements, group_results, partition
from nanogpt.measurement import Measurement, measured_at, read_history, requested_measurement
from tests.experiments.fake_runs import made_config

CHAR = Measurement(
    tokenizer="c" * 64,
    vocab_size=65,
    windows="w1",
    text="t1",
    coverage=1.0,
    data="d1",
    precision="fp32",
    fp8=False,
    block_size=32,
    source="s",
    tokenizer_name="char",
    source_name="in.txt",
)
GPT2 = dataclasses.replace(
    CHAR, tokenizer="9" * 64, vocab_size=50_257, windows="w2", data="d2", tokenizer_name="gpt2", asked_vocab_size=None
)
OTHER_TEXT = dataclasses.replace(CHAR, windows="w3", text="t3", data="d3", source="s3", source_name="b.txt")
BF16 = dataclasses.replace(CHAR, precision="bf16")
FP8 = dataclasses.replace(CHAR, fp8=True)
LONGER = dataclasses.replace(CHAR, windows="w4", block_size=64)
MORE_TRAINING_TEXT = dataclasses.replace(CHAR, data="d5", source="s5")


@pytest.mark.parametrize(
    ("others", "unit", "reason"),
    [
        ([CHAR], "nats", ""),
        ([MORE_TRAINING_TEXT], "nats", ""),
        ([GPT2], "bits_per_byte", "the tokenizer differs (char 65, gpt2 50257)"),
        ([LONGER], "bits_per_byte", "the length of the evaluated windows differs"),
        ([OTHER_TEXT], None, "the validation text differs (in.txt, b.txt)"),
        ([BF16], None, "the precision differs (fp32, bf16)"),
        ([FP8], None, "the use of fp8 differs (false, true)"),
        ([GPT2, BF16], None, "the precision differs"),
    ],
)
def test_a_set_is_comparable_in_nats_in_bits_or_not(others: list[Measurement], unit: str | None, reason: str) -> None:
    found = compare_measurements([CHAR, *others])
    assert found.unit == unit and reason in found.reason
    assert compare_measurements([*others, CHAR]).unit == unit, "the order does not matter"


def test_a_sample_of_the_same_text_is_only_approximate() -> None:
    found = compare_measurements([CHAR, dataclasses.replace(GPT2, coverage=0.3, eval_tokens=256)])
    assert found.unit == "bits_per_byte" and "sample of the same text" in found.note
    assert compare_measurements([CHAR, GPT2]).note == ""


def unrecorded(one: Measurement) -> Measurement:
    """As a run of an earlier version, with the fingerprint of its data."""
    return dataclasses.replace(one, windows=None, text=None, coverage=None)


def test_what_was_not_recorded_is_compared_by_the_request() -> None:
    assert agree_in_nats(unrecorded(CHAR), CHAR) is True, "the fingerprint of the data says it"
    assert compare_measurements([unrecorded(CHAR), unrecorded(OTHER_TEXT)]).unit is None
    old = compare_measurements([unrecorded(CHAR), unrecorded(GPT2)])
    assert old.unit == "bits_per_byte" and "not recorded" in old.note
    nothing = dataclasses.replace(unrecorded(CHAR), data=None, precision=None, fp8=None, tokenizer=None)
    assert compare_measurements([nothing, nothing]).unit == compare_measurements([nothing, CHAR]).unit == "nats"
    elsewhere = dataclasses.replace(nothing, source="another")
    assert compare_measurements([nothing, elsewhere]).unit is None
    changed = dataclasses.replace(unrecorded(CHAR), data="d9")
    assert compare_measurements([unrecorded(CHAR), changed]).unit is None, "the same file, other content"


def test_what_could_belong_to_two_belongs_to_neither() -> None:
    unknown = dataclasses.replace(CHAR, precision=None)
    assert len(set(partition([CHAR, BF16, unknown], agree_in_nats))) == 3
    assert len(set(partition([CHAR, unknown], agree_in_nats))) == 1


def test_groups_are_ranked_apart_and_named() -> None:
    found = [CHAR, GPT2, BF16, CHAR]
    grouping = group_results(found, "val_loss")
    assert [(group.members, group.metric) for group in grouping.groups] == [((0, 1, 3), "val_bpb"), ((2,), "val_loss")]
    assert [group.title for group in grouping.groups] == ["precision fp32", "tokenizer char 65, precision bf16"]
    assert "2 separate rankings" in grouping.notes[0] and "precision" in grouping.notes[0]
    assert any("ranked by bits per byte, because the tokenizer differs" in note for note in grouping.notes)
    assert group_results([CHAR, GPT2], "best_val_loss").groups[0].metric == "best_val_bpb"
    assert group_results([CHAR, GPT2], "val_bpb").notes == (), "that is what was asked for"
    assert group_results([], "val_loss").groups == ()


def test_a_run_that_changed_its_precision_is_of_its_own_kind(tmp_path: Path) -> None:
    config = made_config()
    starts = [
        {"from_step": 0, "data": "d", "arithmetic": {"precision": "fp32", "fp8": False}},
        {"from_step": 10, "evaluated": 10, "data": "d", "arithmetic": {"precision": "bf16", "fp8": False}},
    ]
    history = read_history(config, starts, tmp_path)
    assert [measured_at(history, step).precision for step in (0, 10, 11)] == ["fp32", "fp32", "fp32 then bf16"]
    nothing_trained = [starts[0], starts[1] | {"from_step": 0, "evaluated": -1}]
    assert read_history(config, nothing_trained, tmp_path)[-1][1].precision == "bf16"
    assert read_history(config, [], tmp_path) == [(-1, requested_measurement(config))]


def test_nonsense_counts_as_not_recorded(tmp_path: Path) -> None:
    starts = [{"measurement": {"tokenizer": 1, "text": [], "vocab_size": "x"}, "data": {}, "arithmetic": "?"}]
    (found,) = read_history(made_config(), starts, tmp_path)
    assert (found[1].tokenizer, found[1].text, found[1].vocab_size, found[1].data) == (None, None, None, None)


def test_the_best_checkpoint_is_among_those_of_the_newest_data() -> None:
    def state(loss: float, data: str, precision: str = "fp32") -> dict[str, object]:
        return {"val_loss": loss, "data": data, "arithmetic": {"precision": precision, "fp8": False}}

    assert best_step({2: state(1.0, "a"), 4: state(3.0, "b"), 6: state(2.0, "b"), 8: state(2.5, "b")}) == 6
    assert best_step({2: state(1.0, "a"), 4: state(3.0, "a")}) == 2
    assert best_step({2: state(1.0, "a"), 4: state(3.0, "a", "bf16")}) == 4
    assert best_step({2: {"val_loss": 1.0}, 4: {"val_loss": float("nan")}, 6: {}}) == 2
    assert best_step({}) is None
