"""Several ranks: the same curve as one, the same facts everywhere, and clear words when they can't meet."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanogpt.config import TrainConfig
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.schema import to_json
from tests import ranks
from tests.commands import command
from tests.ranks import Started, processes

Build = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]

# A gentle learning rate: rounding stays rounding instead of being driven apart by the training itself.
GENTLE = {"optimizer.lr": 1e-4, "tracking.log_every": 1, "training.steps": 30}


@pytest.mark.parametrize(
    "cases", [((1, 2), (2, 2)), pytest.param(((2, None), (2, 1), (4, None), (4, 1)), marks=pytest.mark.slow)], ids=str
)
def test_hardware_never_changes_the_curve(
    config: Build, tmp_path: Path, cases: tuple[tuple[int, int | None], ...]
) -> None:
    """With dropout: losses within 2e-6, gradient norms, and evaluations to the last places, on any ranks."""
    one = config(**GENTLE, runs_dir=str(tmp_path / "one"))
    assert ranks.run(one)[0] == [0]
    expected = read_rows(locate_run(one) / "metrics.jsonl")
    for world, micro in cases:
        changes = {"hardware.micro_batch_size": micro, "runs_dir": str(tmp_path / f"{world}-{micro}")}
        other = config(**GENTLE, **changes)
        assert ranks.run(other, world)[0] == [0] * world
        found = read_rows(locate_run(other) / "metrics.jsonl")
        assert len(expected) == len(found) > 30
        for a, b in zip(expected, found, strict=True):
            assert a.keys() == b.keys() and (a["step"], a["tokens"]) == (b["step"], b["tokens"])
            for key in ("loss", "val_loss", "train_loss", "grad_norm"):
                assert abs(a.get(key, 0) - b.get(key, 0)) < 2e-6, (world, micro, a, b)


def test_an_evaluation_is_the_same_to_a_bit_on_any_ranks(config: Build, tmp_path: Path) -> None:
    rows: list[list[dict[str, float]]] = []
    for world in (1, 3):
        built = config(**{"training.steps": 0, "training.batch_tokens": 96}, runs_dir=str(tmp_path / str(world)))
        assert ranks.run(built, world)[0] == [0] * world
        rows.append(read_rows(locate_run(built) / "metrics.jsonl"))
    assert rows[0] == rows[1]


def test_f37_the_number_of_ranks_may_change_on_the_way(config: Build, tmp_path: Path) -> None:
    """2, then 1, then 4 ranks, stopped in between: no sample is seen twice or left out, and the user is told."""
    whole, changing = (config(**GENTLE, runs_dir=str(tmp_path / name)) for name in ("whole", "changing"))
    assert ranks.run(whole)[0] == [0]
    for world, stop_at in ((2, 9), (1, 12), (4, None)):
        fault = [ranks.Fault("nanogpt.training.loop.train_step", stop_at, "SIGTERM")] if stop_at else []
        codes, output = ranks.run(changing, world, fault)
        assert codes == [85 if stop_at else 0] * world
    assert "ranks 1 -> 4" in output and "the same data in the same order" in output
    expected, found = (read_rows(locate_run(built) / "metrics.jsonl") for built in (whole, changing))
    assert [row["step"] for row in expected] == [row["step"] for row in found]
    losses = [(a["loss"], b["loss"]) for a, b in zip(expected, found, strict=True) if "loss" in a]
    assert max(abs(a - b) for a, b in losses) < 2e-6
    state = RunDirectory(locate_run(changing)).checkpoints.load_newest()[0]
    assert state is not None and state.state["samples"] == 30 * 8


def test_mfu_is_a_share_of_the_peak_of_all_devices(config: Build, tmp_path: Path) -> None:
    """Of two ranks: tokens per second times FLOPs per token, over twice the peak of one."""
    peak = 1e9
    built = config(**{"training.steps": 4, "tracking.log_every": 1}, runs_dir=str(tmp_path / "two"))
    known = ranks.Fault("nanogpt.estimates.gpu_specs.peak_flops", 0, f"returns {peak}")
    assert ranks.run(built, 2, [known])[0] == [0, 0]
    loaded = RunDirectory(locate_run(built)).checkpoints.load_newest()[0]
    assert loaded is not None
    multiplied = sum(t.numel() for name, t in loaded.model.items() if ".wpe." not in name)
    flops = 6 * multiplied + 12 * built.model.n_layer * built.model.n_embd * built.model.block_size
    rows = read_rows(locate_run(built) / "timing.jsonl")
    assert len(rows) == 4
    for row in rows:
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / (2 * peak), rel=1e-12)


def start_odd(config: TrainConfig, odd: TrainConfig, world: int, folder: Path) -> list[int | None]:
    """All ranks with `config` but the last."""
    texts = [to_json(config)] * (world - 1) + [to_json(odd)]
    started = [
        processes.Process(
            target=ranks.rank_main, args=(text, rank, world, str(folder), [], dict(os.environ)), daemon=True
        )
        for rank, text in enumerate(texts)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def test_f45_ranks_of_different_configs(config: Build, tmp_path: Path) -> None:
    codes = start_odd(config(), config(**{"optimizer.lr": 5e-3}), 4, tmp_path)
    assert codes == [2] * 4
    told = (tmp_path / "rank-0.txt").read_text()
    assert "rank 3 has another config than the other ranks: optimizer.lr=0.005 (others 0.01)" in told
    assert not locate_run(config()).exists()


def test_f45_ranks_of_different_data(config: Build, tmp_path: Path, corpus: Path) -> None:
    ranks.run(config(**{"training.steps": 0}))
    fault = [ranks.Fault("nanogpt.training.run.prepare_if_small", 1, "other data", 1)]
    codes, output = ranks.run(config(), 2, fault)
    said = r"rank 1 has another data set than the other ranks: fingerprint=([0-9a-f]{64}) \(others ([0-9a-f]{64})"
    match = re.search(said, output)
    assert codes == [2, 2] and match is not None and match[1] != match[2], output


def test_f44_a_rank_that_never_comes(config: Build, tmp_path: Path) -> None:
    text = to_json(config(**{"hardware.timeout": 1.0}))
    process = processes.Process(
        target=ranks.rank_main, args=(text, 0, 4, str(tmp_path), [], dict(os.environ)), daemon=True
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    assert "of 4 ranks these didn't come within 1 s: 1, 2, 3" in (tmp_path / "rank-0.txt").read_text()


def test_f44_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        places = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = command("train.py", "hardware.timeout=5", f"runs_dir={tmp_path}/runs", folder=tmp_path, **places)
    assert done.returncode == 7
    assert f"MASTER_PORT={port}" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


WRONG = [
    ({"RANK": "0"}, "WORLD_SIZE=: is not set"),
    ({"WORLD_SIZE": "2"}, "RANK=: is not set"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: must be below WORLD_SIZE=2"),
    ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one: not a whole number"),
    ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "x"}, "MASTER_PORT=x: not a whole number"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "3"}, "LOCAL_RANK=3: must be below LOCAL_WORLD_SIZE=2"),
    ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, "must be at most WORLD_SIZE=1"),
]


@pytest.mark.parametrize(("environment", "expected"), WRONG)
def test_rank_environments_that_contradict_themselves(environment: dict[str, str], expected: str) -> None:
    from nanogpt.distributed.env import read_rank_env
    from nanogpt.errors import BadInput

    with pytest.raises(BadInput) as caught:
        read_rank_env(environment)
    assert expected in str(caught.value)


def test_a_world_that_does_not_divide_the_batch(config: Build) -> None:
    codes, output = ranks.run(config(), 3)
    assert codes == [2, 2, 2]
    assert "WORLD_SIZE=3: must divide the 8 sequences of training.batch_tokens=128; nearest 2, 4" in output


@pytest.mark.slow
def test_torchrun_and_own_ranks_are_the_same_run(config: Build, tmp_path: Path) -> None:
    """The real commands: torchrun, and hardware.devices=2 stopped by a signal to the command and continued."""
    words = ["data=text", f"data.source={config().data.source}", "data.tokenizer=char", f"data.dir={tmp_path}/data"]
    words += ["model=tiny", "training.steps=30", "schedule.warmup_steps=2", "eval.every=15", "eval.tokens=1024"]
    words += ["tracking.sample_tokens=0", "hardware.device=cpu", "tracking.log_every=1"]
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2"]
    line = [*torchrun, str(ROOT / "train.py"), *words, f"runs_dir={tmp_path}/torchrun", "hardware.threads=1"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    own = [sys.executable, str(ROOT / "train.py"), *words, f"runs_dir={tmp_path}/own", "hardware.devices=2"]
    process = subprocess.Popen([*own, "hardware.threads=1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 5/"):
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 85, errors
    assert "SIGINT: stopped at step" in output and "Traceback" not in errors
    done = subprocess.run([*own, "hardware.threads=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (next((tmp_path / name).glob("*/metrics.jsonl")) for name in ("torchrun", "own"))
    assert first.read_bytes() == second.read_bytes()
    starts = json.loads(next((tmp_path / "own").glob("*/provenance.json")).read_text())
    assert len(starts) == 2 and starts[1]["arithmetic"]["ranks"] == 2


def test_the_command_dies_and_its_ranks_with_it(config: Build, tmp_path: Path) -> None:
    """kill -9 of the command that started the ranks: they are gone too, and the directory is free."""
    path = tmp_path / "config.json"
    built = config(**{"hardware.devices": 2, "training.steps": 5000, "eval.every": 5000})
    path.write_text(to_json(built))
    code = (
        "import json, sys; from nanogpt import schema; from nanogpt.config import TrainConfig; "
        "from cli.actions import start_ranks; "
        "sys.exit(start_ranks('train', schema.from_dict(TrainConfig, json.load(open(sys.argv[1]))), 2, 120.0))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 20/"):
        assert process.poll() is None
    process.kill()
    process.communicate()  # returns when the ranks have closed the pipe too
    single = config(**{"training.steps": 5000, "eval.every": 5000})
    started = Started(single).until_rows(20)
    started.send(signal.SIGTERM)
    assert started.wait() == [85]


def test_gradients_cross_ranks_once_a_step(config: Build, tmp_path: Path) -> None:
    """Four micro-batches: the buckets are reduced in the backward of the last one alone."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from nanogpt.data.batches import TrainBatches
    from nanogpt.data.prepare import prepare
    from nanogpt.device import Compute
    from nanogpt.training.state import build_state
    from nanogpt.training.step import train_step

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        built = config(**{"hardware.micro_batch_size": 2})
        dataset = prepare(built.data)
        state = build_state(
            built, built.model.with_vocab(dataset.vocab_size), Compute(torch.device("cpu"), "fp32", "x")
        )
        wrapped = DistributedDataParallel(state.model)
        state.forward = wrapped
        seen: list[int] = []

        def counting(group: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            seen.append(done[0])
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())  # of one rank; a callback in a thread of gloo can block the group's end
            return future

        wrapped.register_comm_hook(None, counting)
        done = [0]

        def batches():  # type: ignore[no-untyped-def]
            for batch in TrainBatches(dataset.train, built, torch.device("cpu")).micro_batches(0):
                done[0] += 1
                yield batch

        train_step(state, batches(), built)
        assert set(seen) == {4} and len(seen) >= 1
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_recomputing_changes_no_bit_of_a_run(config: Build, tmp_path: Path, world: int) -> None:
    """With dropout, through DistributedDataParallel, weights and metrics are those of a run that kept everything."""
    kept, again = (
        config(
            **{"hardware.activation_checkpointing": on, "training.steps": 8},
            runs_dir=str(tmp_path / str(on)),
            name="same",
        )
        for on in (False, True)
    )
    assert ranks.run(kept, world)[0] == ranks.run(again, world)[0] == [0] * world
    assert ranks.result(kept) == ranks.result(again)
