"""Weights & Biases: one W&B run per run directory, however often it is started, stopped and killed.

W&B steps are optimizer steps, so the server reports which ones it has (`starting_step`). Offline, each start writes a
new file with the steps that no earlier file has.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import CommError

from nanogpt.config import TrackingConfig
from nanogpt.entry_names import parse_sample_step, parse_step
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.files import list_entries, read_json_object, read_text, write_atomic
from nanogpt.metrics_file import Row
from nanogpt.tracking.run_metadata import RunMetadata, wandb_mode

FILE = "wandb.json"
DIFF = "uncommitted.diff"  # in the files of the W&B run
EXIT_CODES = {"finished": 0, "paused": 0, "stopped": 85, "diverged": 6}
SAMPLES = 100  # newest samples in the table
NO_KEY = "no API key: `wandb login`, or WANDB_API_KEY in the environment"


def set_wandb_environment(mode: str) -> None:
    """Set variables that wandb reads: its mode, no messages on the terminal, no error reports to its makers."""
    os.environ["WANDB_MODE"] = mode
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def has_key() -> bool:
    """Return whether wandb finds an API key, without a prompt."""
    set_wandb_environment("online")
    return wandb.login(prompt=False, verify=False)


def check_api_key(settings: TrackingConfig) -> None:
    """Raise BadEnvironment if the mode is online and there is no API key."""
    if wandb_mode(settings) == "online" and not has_key():
        raise BadEnvironment(f"tracking.required=true: wandb: {NO_KEY}")


class Wandb:
    """Backend of a W&B run."""

    def __init__(self, metadata: RunMetadata, say: Any) -> None:
        self.metadata, self.say = metadata, say
        self.run: Any = None
        self.step = -1
        """The last step that this start has logged."""
        self.time: float | None = None
        """Time of that step's row, in seconds since 1970."""
        self.staging = ""
        self.known = read_facts(metadata.path)
        self.id: str = self.known.get("id") or metadata.id

    def start(self) -> int:
        """Create or continue the run. Without an API key it is offline, or an error if the tracker is required."""
        mode = wandb_mode(self.metadata.settings)
        set_wandb_environment(mode)
        if mode == "online" and not has_key():
            if self.metadata.settings.required:
                raise BadEnvironment(NO_KEY)
            self.say(f"warning: wandb: {NO_KEY}; offline in {self.metadata.path}/wandb, for `wandb sync`")
            mode = "offline"
        last = self.find_last_offline_step() if mode == "offline" else -1
        self.write_facts(self.known.get("last", -1))
        try:
            self.run = self.init_run(mode)
        except CommError as error:
            self.clean()
            raise BadEnvironment(describe_comm_error(error)) from error
        if mode == "online":
            last = self.run.starting_step - 1
            self.say(f"wandb   {self.run.url}")
        if self.metadata.diff:
            file = Path(self.run.dir) / DIFF
            write_atomic(file, self.metadata.diff)
            self.run.save(str(file), base_path=self.run.dir, policy="now")
        self.run.define_metric("step")
        self.run.define_metric("tokens")
        self.run.define_metric("val_loss", step_metric="step", summary="min")
        self.run.define_metric("*", step_metric="step")
        self.write_facts(last)
        return last

    def init_run(self, mode: str) -> Any:
        """Call wandb.init so that nothing about this machine is sent: no command line, code, git, packages or console.

        wandb copies files to a staging folder before their upload and sends its path, so the folder is not in the home.
        """
        metadata, settings = self.metadata, self.metadata.settings
        self.staging = tempfile.mkdtemp(prefix="wandb-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
        os.environ["WANDB_DATA_DIR"] = self.staging
        return wandb.init(
            project=metadata.project,
            entity=settings.entity,
            dir=metadata.path,
            id=self.id,
            name=metadata.name,
            group=metadata.group,
            job_type=settings.job_type,
            tags=list(settings.tags) or None,
            config=metadata.config,
            mode=mode,  # pyright: ignore[reportArgumentType]
            resume="allow",
            reinit="create_new",
            save_code=False,
            settings=private_settings(settings, mode),
        )

    def write_facts(self, last: int) -> None:
        """Write wandb.json: which W&B run this is, and the last step that it is known to have."""
        facts = {"id": self.id, "project": self.metadata.project}
        if self.run is not None:
            facts |= {"entity": self.run.entity or None, "url": self.run.url}
        with suppress(OSError):  # a full disk
            write_atomic(self.metadata.path / FILE, json.dumps(self.known | facts | {"last": last}, indent=1) + "\n")

    def find_last_offline_step(self) -> int:
        """Return the last step that the server or a file of an earlier offline start has, or -1."""
        last = int(self.known.get("last", -1)) if self.known.get("project") == self.metadata.project else -1
        for file in reversed(list_offline_files(self.metadata.path, self.id)):
            steps = read_history_steps(file)
            if steps:
                return max(last, *steps)
        return last

    def log_row(self, row: Row) -> None:
        self.step, self.time = int(row["step"]), row.get("time")
        self.log({name: value for name, value in row.items() if name != "time"})

    def log(self, values: dict[str, Any]) -> None:
        """Log values at the current step, with the time of its row rather than that of the upload."""
        self.run.log(values | ({} if self.time is None else {"_timestamp": self.time}), step=self.step)

    def log_sample(self, step: int, text: str) -> None:
        """Log the newest samples as a table; W&B shows the last table."""
        if step != self.step:
            return
        files = [
            path for path in list_entries(self.metadata.path / "samples") if parse_sample_step(path.name) is not None
        ]
        rows: Any = [[parse_sample_step(file.name), read_text(file, "replace")] for file in files[-SAMPLES:]]
        if rows:
            self.log({"samples": wandb.Table(columns=["step", "text"], data=rows)})

    def finish(self, state: str, picture: Path | None) -> None:
        with suppress(Exception):  # the picture is optional
            if picture is not None and self.step >= 0:
                self.log({"loss_curve": wandb.Image(str(picture))})
        if state == "finished" and self.metadata.settings.upload_checkpoint:
            try:
                self.upload()
            except Exception as error:
                self.say(f"warning: wandb: the checkpoint was not uploaded: {one_line(error, 200)}")
        if state == "stopped":
            self.run.mark_preempting()
        last = max(self.step, self.run.starting_step - 1)
        self.run.finish(exit_code=EXIT_CODES.get(state, 1))
        self.write_facts(last)
        for file in [] if self.run.settings.mode == "offline" else list_offline_files(self.metadata.path, self.id):
            file.with_suffix(".wandb.synced").touch()  # `wandb sync` must not send what the server has
        self.clean()

    def upload(self) -> None:
        """Upload the newest checkpoint's weights and the tokenizer as an artifact of type model."""
        saved = [path for path in list_entries(self.metadata.path / "checkpoints") if parse_step(path.name) is not None]
        newest = max(saved, key=lambda path: parse_step(path.name) or 0, default=None)
        if newest is None:
            return
        artifact = wandb.Artifact(f"model-{self.id}", type="model", metadata=self.metadata.config)
        artifact.add_file(str(newest / "model.safetensors"))
        artifact.add_file(str(self.metadata.path / "tokenizer.json"))
        self.run.log_artifact(artifact, aliases=["latest", newest.name])

    def abandon(self) -> None:
        """Kill wandb's service process, which could keep this process from ending."""
        with suppress(Exception):
            service: Any = wandb.setup()
            service._connection._proc._process.kill()
        self.clean()

    def clean(self) -> None:
        """Stop wandb's service, so that the next run starts a new one, and remove the staging folder."""
        with suppress(Exception, SystemExit):  # SystemExit: the service was killed
            wandb.teardown()
        if self.staging:
            shutil.rmtree(self.staging, ignore_errors=True)


def private_settings(settings: TrackingConfig, mode: str) -> wandb.Settings:
    """Return settings of wandb that send nothing about this machine, but for its load with system_stats=true."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="-",
        label_disable=True,
        program="train.py",
        silent=True,
        symlink=False,
        x_disable_machine_info=not settings.system_stats,
        x_disable_meta=True,
        x_disable_stats=not settings.system_stats,
        x_save_requirements=False,
        x_skip_transaction_log=mode == "online",  # metrics.jsonl is sent again instead
        init_timeout=settings.timeout,
        finish_timeout=settings.timeout,
        finish_timeout_raises=True,
    )


def describe_comm_error(error: CommError) -> str:
    """Return why wandb.init failed, in a few words."""
    text = " ".join(str(error).split()).partition("for run ")[2].partition(": ")[2] or str(error)
    return "the API key was rejected (401)" if re.search(r"\b401\b", text) else f"the server can't be used: {text}"


def read_facts(path: Path) -> dict[str, Any]:
    """Return the content of wandb.json, without values of the wrong type; {} if it can't be read."""
    facts = read_json_object(path / FILE)
    kinds = {"id": str, "project": str, "entity": str | None, "url": str | None, "last": int}
    return {key: facts[key] for key, kind in kinds.items() if key in facts and isinstance(facts[key], kind)}


def list_offline_files(path: Path, run_id: str) -> list[Path]:
    """Return the files of the run's offline starts, oldest first."""
    return sorted(path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))


def read_history_steps(file: Path) -> list[int]:
    """Return the steps in an offline file, read by wandb's own reader, which ignores an incomplete end."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, timeout=600)
    steps: list[int] = []
    for line in done.stdout.splitlines():
        if '"history"' in line:
            with suppress(ValueError, KeyError, TypeError):
                steps.append(int(json.loads(line)["history"]["item"]["_step"]))
    return steps
