"""Programs take turns in fresh processes, do the same work, and what can't be compared is refused in one line.

nanoGPT itself takes part where the environment variable NANOGPT names a checkout of it.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.benchmark import baselines, ours
from nanogpt.benchmark.baselines import check_baseline
from nanogpt.benchmark.comparison import (
    compare_generation,
    compare_training,
    compiling_rows,
    measure_in_turn,
    ratio_row,
    with_known_vocabulary,
)
from nanogpt.benchmark.measurement import OURS, Timing, Workload, measure, with_vocabulary
from nanogpt.benchmark.report import bench
from nanogpt.benchmark.timing import MarkdownTable
from nanogpt.config import BenchConfig, BenchSettings, ModelConfig, TrainConfig
from nanogpt.device import set_up_device
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.schema import from_dict
from nanogpt.training.step import no_phase_timer

Build = Callable[..., TrainConfig]
GPT2_FORM = {"model.activation": "gelu", "model.dropout": 0.0, "model.bias": True}


def build(
    config: Build, against: tuple[str, ...] = (), changes: dict[str, Any] | None = None, **bench: Any
) -> BenchConfig:
    settings = {"warmup": 1, "steps": 2, "rounds": 2, "new_tokens": 6, "startup": False, "batch_sizes": (2,)}
    base = config(**GPT2_FORM | (changes or {}))
    return BenchConfig(**dict(base), bench=BenchSettings(**settings | bench), against=against)


@pytest.fixture
def nanogpt() -> str:
    """Return `nanogpt:PATH` of a real checkout."""
    if "NANOGPT" not in os.environ:
        pytest.skip("NANOGPT names no checkout of nanoGPT")
    return f"nanogpt:{os.environ['NANOGPT']}"


def rows(table: MarkdownTable) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


@pytest.mark.slow
def test_generation_alone(config: Build, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(config, what=("generation",), batch_sizes=(1, 3))
    assert bench(built) == 0
    shown = capsys.readouterr()
    for batch in (1, 3):
        assert f"| generation, batch {batch}, 6 new tokens after 1, fp32 weights | nanogpt-lab |" in shown.out
    assert "against ours" not in shown.out
    assert "generation, batch 3, round 2 of 2: nanogpt-lab" in shown.err


@pytest.mark.slow
def test_generation_against_transformers(config: Build) -> None:
    pytest.importorskip("transformers")
    built = build(config, ("transformers",), what=("generation",), prompt_tokens=3)
    (table,) = compare_generation(built, set_up_device(built.hardware))
    assert table.columns[1:] == (OURS, "transformers")
    found = rows(table)
    assert (
        found["time against ours, pair by pair"][0] == "1 x" and " x (" in found["time against ours, pair by pair"][1]
    )
    assert all(len(cells) == 2 for cells in found.values())


@pytest.mark.parametrize(
    "form",
    [
        {"model.position": "learned", "model.bias": True, "model.activation": "gelu_tanh", "model.vocab_multiple": 64},
        {"model.position": "rotary", "model.norm": "rmsnorm", "model.activation": "swiglu", "model.bias": False},
    ],
)
def test_transformers_has_the_same_network_and_draws_every_token(config: Build, form: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    built = with_known_vocabulary(build(config, changes=form))
    compute = set_up_device(built.hardware)
    work = Workload(program="transformers", what="generation", batch=2, config=built)
    prompts = ours.random_prompts(work, compute.device)
    theirs, draw = baselines.build_transformers_generator(work, compute, prompts)
    mine, _ = ours.build_generator(work, compute, prompts)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in mine.parameters())
    draw(5)  # refuses by itself to end early


def test_nanogpt_takes_part(config: Build, nanogpt: str) -> None:
    built = build(config, (nanogpt,), what=("training", "generation"))
    compute = set_up_device(built.hardware)
    tables = [compare_training(built, compute), *compare_generation(built, compute)]
    for table in tables:
        assert table.columns[1:] == (OURS, Path(nanogpt.partition(":")[2]).name)
        assert " x (" in rows(table)["time against ours, pair by pair"][1]


def test_one_command_compares_and_profiles(
    config: Build, nanogpt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Speed, floors, phases and memory of both; the kernels of this program, on the same batch."""
    built = build(config, (nanogpt,), what=("training",), trace=str(tmp_path / "traces"))
    assert bench(built.model_copy(update={"profile": True})) == 0
    shown = capsys.readouterr().out
    cells = {
        line.split(" | ")[0][2:]: line.rstrip(" |").split(" | ")[1:] for line in shown.splitlines() if " | " in line
    }
    for row in ("ms a step", "tokens a second", "achieved", "peak memory"):
        assert len(cells[row]) == 2
    for phase in ("forward", "backward", "clip", "optimizer"):
        assert all(re.search(r"ms, [\d.]+ %", cell) for cell in cells[f"of a step, each phase waited for: {phase}"])
    (products,) = (found for name, found in cells.items() if name.startswith("floor by matrix products"))
    (memory,) = (found for name, found in cells.items() if name.startswith("floor by memory"))
    assert [cell.split("; ")[0] for cell in products] == [products[0].split("; ")[0]] * 2, "the same for both"
    assert len(memory) == 1
    assert "training: top kernels" in shown and len(list((tmp_path / "traces").iterdir())) == 1


def test_both_sides_are_compiled_from_nothing_and_then_from_what_was_kept() -> None:
    def run(first: float) -> Timing:
        return Timing(seconds=(1.0, 1.0), first=first, memory=0, parameters=1)

    found = {OURS: [run(31.0), run(3.0), run(4.0)], "x": [run(21.0), run(2.0), run(2.0)]}
    assert [row[1:] for row in compiling_rows(found)] == [("30", "20"), ("2.5 (2 to 3)", "1 (1 to 1)")]
    assert len(compiling_rows({OURS: [run(31.0)], "x": [run(21.0)]})) == 1


def test_a_process_keeps_what_it_compiles_where_it_is_told(
    config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def start(*_: str, message: str, **environment: str) -> None:
        assert Workload.model_validate_json(message).what == "training"
        told.append(environment.get("TORCHINDUCTOR_CACHE_DIR", "its own"))

    text = Timing(seconds=(1.0,), first=1.0, memory=0, parameters=1).model_dump_json()
    monkeypatch.setattr("nanogpt.benchmark.measurement.start_child", start)
    monkeypatch.setattr("nanogpt.benchmark.measurement.wait_for_child", lambda _: text)  # pyright: ignore[reportUnknownLambdaType]
    built = with_known_vocabulary(build(config))
    measure_in_turn((OURS, "x"), 2, lambda name: Workload(program=name, what="training", batch=1, config=built))
    assert told[:2] == told[2:] and len(set(told)) == 2 and "its own" not in told


def test_nanogpts_attention_is_torchs_choice(config: Build, nanogpt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our order of kernels is ours alone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    built = with_known_vocabulary(build(config, (nanogpt,), {"hardware.attention": "math"}))
    compute = set_up_device(built.hardware)
    work = Workload(program=nanogpt, what="training", batch=8, config=built)
    batches = ours.random_batches(work, compute.device)
    seen: list[set[str]] = []
    for make in (ours.build_trainer, baselines.build_nanogpt_trainer):
        _, step = make(work, compute, batches)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            step(no_phase_timer)
        seen.append({event.key for event in found.key_averages() if "attention" in event.key})
    mine, theirs = seen
    assert not any("flash" in name for name in mine) and any("flash" in name for name in theirs)


def test_nanogpt_and_we_make_the_same_steps(config: Build, nanogpt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights on the same batches the weights stay the same: it is the same work."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    changes = {"schedule.name": "constant", "hardware.micro_batch_size": 4}
    built = with_known_vocabulary(build(config, (nanogpt,), changes))
    compute = set_up_device(built.hardware)
    work = Workload(program=nanogpt, what="training", batch=4, config=built)
    batches = ours.random_batches(work, compute.device)
    assert len(batches) == 2 and batches[0].ids.shape == (4, 16)
    assert torch.equal(batches[0].ids[:, 1:], batches[0].targets[:, :-1])
    mine, step = ours.build_trainer(work, compute, batches)
    theirs, their_step = baselines.build_nanogpt_trainer(work, compute, batches)
    theirs.load_state_dict(mine.state_dict())
    for _ in range(3):
        step(no_phase_timer)
        their_step(no_phase_timer)
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.slow
def test_our_logits_are_never_all_there(config: Build) -> None:
    """Peak of a step with 65,536 ids, less that with 64, less the embedding's state, against 512 MiB of logits."""
    changes = {"model.block_size": 512, "training.batch_tokens": 2048, "hardware.micro_batch_size": 4}
    built = build(config, changes=changes, steps=1)
    many, few = (
        measure(Workload(program=OURS, what="training", batch=4, config=with_vocabulary(built, ids))).memory
        for ids in (65_536, 64)
    )
    logits = 4 * 2048 * 65_536
    assert many - few - 4 * 4 * 16 * 65_536 < 0.6 * logits


def test_ratios_are_of_pairs() -> None:
    assert ratio_row({OURS: [1.0, 2.0, 4.0], "x": [2.0, 6.0, 4.0]})[2] == "2 x (1 to 3)"


def test_another_network_is_no_comparison(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 101])
    empty = {"seconds": (1.0,), "first": 0.0, "memory": 0}
    monkeypatch.setattr("nanogpt.benchmark.comparison.measure", lambda *_: Timing(**empty, parameters=next(sizes)))
    built = build(config)
    with pytest.raises(BadInput, match="against=x: its model has 101 parameters, ours 100"):
        measure_in_turn((OURS, "x"), 1, lambda name: Workload(program=name, what="training", batch=1, config=built))


CHECKOUTS = [
    (None, "model.py: No such file or directory; allowed: nanoGPT's folder"),
    ("class GPT: pass", "model.py has no GPTConfig"),
    ("x = 1", "model.py has no GPT and no GPTConfig"),
    ("class GPT(", "model.py is not Python"),
]


@pytest.mark.parametrize(("text", "expected"), CHECKOUTS)
def test_what_is_no_checkout(text: str | None, expected: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "model.py").write_text(text)
    with pytest.raises(BadInput) as error:
        check_baseline(f"nanogpt:{tmp_path}", ModelConfig(activation="gelu"))
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("rival", "switches", "expected"),
    [
        ("nanogpt:{path}", {}, "model.activation=gelu_tanh: nanoGPT has no such form; it needs model.activation=gelu"),
        ("nanogpt:{path}", {"activation": "gelu", "norm": "rmsnorm"}, "it needs model.norm=layernorm"),
        ("nanogpt:{path}", {"activation": "gelu", "n_kv_head": 4}, "model.n_kv_head=4"),
        ("transformers", {"bias": False}, "transformers' GPT-2 has no such form; it needs model.bias=true"),
        ("transformers", {"qk_norm": True}, "it needs model.qk_norm=false"),
    ],
)
def test_models_that_a_rival_has_not(rival: str, switches: dict[str, Any], expected: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class GPT: pass\nclass GPTConfig: pass\n")
    with pytest.raises(BadInput) as error:
        check_baseline(rival.format(path=tmp_path), ModelConfig(**switches))
    assert expected in str(error.value)


def test_transformers_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BadEnvironment, match=r"against=transformers: not installed: pip install"):
        check_baseline("transformers", ModelConfig())


def test_a_checkout_that_fails_is_told_in_one_line(config: Build, tmp_path: Path) -> None:
    code = "class GPTConfig:\n    pass\nclass GPT:\n    pass\nprint('noise')\nraise ValueError('not today')\n"
    (tmp_path / "model.py").write_text(code)
    rival = f"nanogpt:{tmp_path}"
    work = Workload(
        program=rival, what="training", batch=8, config=with_known_vocabulary(build(config, (rival,), rounds=1))
    )
    with pytest.raises(BadInput, match=r"against=nanogpt:.*: its training ended with ValueError: not today") as error:
        measure(work)
    assert not error.value.reported_elsewhere


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"against": "pytorch"}, "against=pytorch: no such program; allowed: nanogpt:PATH, transformers"),
        ({"against": "nanogpt:"}, "against=nanogpt:: no such program"),
        ({"against": "transformers"}, "can only be compared in generation"),
        (
            {"against": "transformers", "bench": {"what": "generation"}},
            "model.block_size=16 tokens, 257 are asked for",
        ),
        ({"bench": {"what": "sampling"}}, "not a choice; allowed: a list of training, generation"),
        ({"bench": {"what": []}}, "at least one value is needed"),
        ({"bench": {"batch_sizes": [0]}}, "bench.batch_sizes=0: out of range"),
        ({"bench": {"rounds": 0}}, "out of range; allowed: integer in [1, 1000]"),
        ({"bench": {"new_tokens": 1}}, "out of range"),
    ],
)
def test_settings_that_are_refused(config: Build, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput) as error:
        from_dict(BenchConfig, config().model_dump() | values)
    assert expected in str(error.value)


def test_several_rivals_in_one_word(config: Build) -> None:
    values = {"against": "nanogpt:/a b/c, transformers", "bench": {"what": "generation", "new_tokens": 8}}
    built = from_dict(BenchConfig, config().model_dump() | values)
    assert built.against == ("nanogpt:/a b/c", "transformers") and built.checkouts == ("nanogpt:/a b/c",)
    assert built.bench.what == ("generation",)
