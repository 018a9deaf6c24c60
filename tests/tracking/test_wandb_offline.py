"""W&B without a network: what is in the files of the run directory, read back with W&B's own reader, and sent later."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wandb.errors import CommError

from nanogpt.config import TrainConfig
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.tracking.wandb import describe_comm_error, list_offline_files, read_facts
from tests import ranks
from tests.ranks import Started
from tests.tracking.server import KEY, Server
from tests.tracking.test_wandb_online import (
    ROOT,
    Build,
    Reference,
    curve,
    environment,
    halt,
    has_curve,
    only,
    plain,
    sync,
    until,
)

CANARIES = {"MY_API_TOKEN": f"canary-{2**40}", "SOME_SETTING": "plain-value-of-the-environment"}


def test_a_port_with_401_in_it_is_no_rejected_key() -> None:
    down = CommError("failed for run me/x/y: Post http://127.0.0.1:40123/graphql: connection refused")
    assert (
        describe_comm_error(down) == "the server can't be used: Post http://127.0.0.1:40123/graphql: connection refused"
    )
    assert "rejected (401)" in describe_comm_error(CommError("failed for run me/x/y: returned error 401: bad key"))


def test_what_wandb_json_can_t_have_said_is_left_out(tmp_path: Path) -> None:
    good = {"id": "abc", "project": "p", "entity": None, "url": "u", "last": 5}
    for text in (json.dumps([good]), "[" * 200_000, "{"):
        (tmp_path / "wandb.json").write_text(text)
        assert read_facts(tmp_path) == {}
    (tmp_path / "wandb.json").write_text(json.dumps(good | {"id": 5, "last": "x", "more": 1}))
    assert read_facts(tmp_path) == {"project": "p", "entity": None, "url": "u"}
    (tmp_path / "wandb.json").write_text(json.dumps(good))
    assert read_facts(tmp_path) == good


@pytest.fixture
def offline(config: Build) -> Build:
    """Return configs of runs with W&B in offline mode."""
    return lambda **changes: config(
        **{"tracking.trackers": ["wandb"], "tracking.mode": "offline", "tracking.timeout": 30.0} | changes
    )


def keyless(folder: Path) -> dict[str, str]:
    """Return an environment in which no API key is found."""
    return {
        "HOME": str(folder),
        "NETRC": str(folder / "none"),
        "WANDB_API_KEY": "",
        "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",
    }


def records(file: Path) -> list[dict[str, Any]]:
    """Everything in a .wandb file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_in(config: TrainConfig) -> list[list[dict[str, Any]]]:
    """Return the rows in each file of the run, oldest first."""
    kept = json.loads((locate_run(config) / "wandb.json").read_text())
    found = [records(file) for file in list_offline_files(locate_run(config), kept["id"])]
    return [[one["history"]["item"] for one in file if one["type"] == "history"] for file in found]


@pytest.mark.slow
def test_f29_kill_9_and_later_sync(offline: Build, undisturbed: Reference, tmp_path: Path) -> None:
    """Two starts, two files, no step in both; together they are the whole curve, for W&B's own command and for ours."""
    built = offline(runs_dir=str(tmp_path / "widths"))
    started = Started(built, 1, halt(tmp_path / "never"), keyless(tmp_path)).until_rows(6)
    until(lambda: any(b"val_loss" in file.read_bytes() for file in locate_run(built).glob("wandb/*/*.wandb")))
    until(lambda: (locate_run(built) / "wandb.json").exists() and any(rows_in(built)))
    started.send(signal.SIGKILL)
    started.wait()
    again = Started(built, 1, [], keyless(tmp_path))
    assert again.wait() == [0] and "warning" not in again.output(), again.output()
    assert ranks.result(built) == undisturbed()
    files = rows_in(built)
    assert len(files) == 2 and all(files)
    assert plain([row for file in files for row in file]) == curve(built)
    with Server() as server:
        command = [
            sys.executable,
            "-m",
            "wandb",
            "sync",
            *sorted(map(str, locate_run(built).glob("wandb/offline-run-*"))),
        ]
        subprocess.run(command, env=os.environ | environment(server), cwd=tmp_path, capture_output=True, check=True)
        assert has_curve(server, built)
        assert "nothing was missing" in sync(server, str(locate_run(built))).stdout and has_curve(server, built)
        sent = only(server).fields
        assert (sent["groupName"], sent["displayName"]) == ("widths", "test-test")


def test_speed_time_facts_and_code_are_in_the_file(offline: Build, tmp_path: Path) -> None:
    """Each row has its own time, that of timing.jsonl; the commit and the changes are sent on request."""
    built = offline(**{"tracking.send_code": True})
    started = Started(built, 1, [], keyless(tmp_path) | CANARIES | {"SLURM_JOB_ID": "77"})
    assert started.wait() == [0], started.output()
    path = locate_run(built)
    speeds = {row["step"]: row for row in read_rows(path / "timing.jsonl")}
    (rows,) = rows_in(built)
    for row in rows:
        if "loss" in row:
            assert row["tokens_per_second"] == speeds[row["_step"]]["tokens_per_second"]
        if "loss" in row and "val_loss" not in row:
            assert row["_timestamp"] == speeds[row["_step"]]["time"]
    stamps = [row["_timestamp"] for row in rows]
    assert stamps == sorted(set(stamps)), "no two rows share a time"
    assert rows[-1]["samples._type"] == "table-file"
    (file,) = path.glob("wandb/offline-run-*/*.wandb")
    (config,) = [one["run"]["config"]["update"] for one in records(file) if one["type"] == "run"]
    start = RunDirectory(path).read_starts()[-1]
    facts = config["run"]
    assert (facts["job"], facts["node"], facts["data_fingerprint"]) == ("77", start["host"], start["data"])
    assert facts["vocab_size"] == start["measurement"]["vocab_size"] and facts["parameters"] > 0
    git = start["git"] or {}
    assert facts.get("commit") == git.get("commit")
    diffs = [diff.read_text() for diff in path.glob("wandb/offline-run-*/files/uncommitted.diff")]
    assert diffs == ([git["diff"]] if git.get("diff") else [])


def test_without_a_key_it_is_kept_offline(config: Build, undisturbed: Reference, tmp_path: Path) -> None:
    built = config(**{"tracking.trackers": ["wandb"], "tracking.timeout": 30.0})
    started = Started(built, 1, [], keyless(tmp_path) | CANARIES)
    assert started.wait() == [0]
    assert ranks.result(built) == undisturbed()
    assert started.output().count("warning: ") == 1
    assert "warning: wandb: no API key: `wandb login`, or WANDB_API_KEY in the environment" in started.output()
    assert [plain(rows) for rows in rows_in(built)] == [curve(built)]
    refuse_leaks(b"".join(file.read_bytes() for file in locate_run(built).glob("wandb/*/*.wandb")), [str(tmp_path)])


@pytest.mark.parametrize("world", [1, 2])
def test_without_a_key_it_is_refused_where_it_is_required(world: int, config: Build, tmp_path: Path) -> None:
    built = config(**{"tracking.trackers": ["wandb"], "tracking.required": True})
    started = Started(built, world, [], keyless(tmp_path))
    assert started.wait() == [5] * world
    assert "error: tracking.required=true: wandb: no API key" in started.output()
    assert not locate_run(built).exists(), "before anything is written"


def test_a_required_server_that_is_down_ends_the_run(config: Build, tmp_path: Path) -> None:
    built = config(**{"tracking.trackers": ["wandb"], "tracking.required": True, "tracking.timeout": 1.0})
    started = Started(built, 1, [], keyless(tmp_path) | {"WANDB_API_KEY": KEY})
    assert started.wait() == [5]
    assert "error: tracking.required=true: wandb: the server can't be used" in started.output()
    assert json.loads((locate_run(built) / "status.json").read_text())["state"] == "failed"


def refuse_leaks(sent: bytes, words: list[str]) -> None:
    """None of what only this machine should know is in it, but the curve is."""
    assert b"val_loss" in sent
    for word in [*words, *CANARIES, *CANARIES.values(), KEY, str(ROOT), f'"{socket.gethostname()}"', "runs_dir"]:
        assert word.encode() not in sent, word


@pytest.mark.slow
def test_nothing_of_this_machine_is_sent(tmp_path: Path, corpus: Path) -> None:
    """Neither command line, folders, user and host, nor secrets and other variables; artifacts included."""
    home, private = tmp_path / "home-of-someone", tmp_path / "private-folder"
    home.mkdir()
    private.mkdir()
    words = ["data=text", f"data.source={corpus}", f"data.dir={private}/data", "name=word", "model.n_layer=1"]
    words += ["model.n_embd=16", "model.n_head=1", "model.block_size=16", "training.batch_tokens=128", "hardware=cpu"]
    words += ["training.steps=60", "schedule.warmup_steps=0", "eval.every=30", "eval.tokens=256", "hardware.threads=1"]
    words += [f"runs_dir={private}/runs", "tracking=wandb", "tracking.mode=online", "tracking.upload_checkpoint=true"]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with Server() as server:
        variables = os.environ | environment(server) | CANARIES | {"HOME": str(home), "USER": "someones-name"}
        done = subprocess.run(command, cwd=private, capture_output=True, text=True, env=variables)
        assert (done.returncode, done.stderr) == (0, "") and "warning" not in done.stdout, done.stdout + done.stderr
        assert only(server).config()["data"]["source"] == corpus.name and "system.cpu" in str(only(server).lines)
        put = {Path(path).name.partition(".")[0].partition("_")[0] for path in server.files}
        assert put >= {"model", "tokenizer", "samples", "loss"}
        lines = b"\n".join(server.bodies).split(b"\n")
    sent = b"\n".join(line for line in lines if not line.startswith(b"Authorization"))
    hidden = [str(tmp_path), home.name, private.name, "someones-name", "hardware=cpu", "tracking.mode"]
    refuse_leaks(sent, hidden)
    kept = b"".join(file.read_bytes() for file in private.rglob("*") if file.is_file())
    for word in (CANARIES["MY_API_TOKEN"], KEY):
        assert word.encode() not in kept, "nor in the run directory"
