"""The commands `train`, `evaluate` and `doctor`. The first two start the ranks of the config."""

import json
import os
import sys

from nanogpt.child_process import module_command
from nanogpt.config import DoctorConfig, EvaluateConfig, TrainConfig
from nanogpt.distributed.env import set_rank_env_from_slurm
from nanogpt.distributed.spawn import run_ranks
from nanogpt.errors import BadInput
from nanogpt.schema import ConfigModel


def train(config: TrainConfig) -> int:
    """Train, continue, or say that the run is finished. Return the exit code. Raises LabError."""
    set_rank_env_from_slurm(os.environ)
    if "RANK" not in os.environ and not (config.replay or config.dry_run):
        if (config.hardware.nodes or 1) > 1:
            raise BadInput(f"hardware.nodes={config.hardware.nodes}: needs nanogpt submit, or torchrun")
        if (config.hardware.devices or 1) > 1:
            return start_ranks("train", config, config.hardware.devices or 1, config.checkpoint.stop_timeout_s)
    silence_torch_logs()
    from nanogpt.training.run import train  # torch: not for --help

    return train(config)


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate a model and print the results. Return the exit code. Raises LabError."""
    set_rank_env_from_slurm(os.environ)
    if (config.devices or 1) > 1 and "RANK" not in os.environ:
        return start_ranks("evaluate", config, config.devices or 1)
    silence_torch_logs()
    from nanogpt.evaluation.command import evaluate  # torch: not for --help

    return evaluate(config)


def run_doctor(config: DoctorConfig) -> int:
    """Check this machine, or with gpu=true a GPU. Return the exit code."""
    if config.gpu:
        from nanogpt.gpu_check.run import check_gpu  # torch: not for --help

        return check_gpu(config)
    from nanogpt.doctor.run import run_checks

    return run_checks(config)


def silence_torch_logs() -> None:
    """Keep torch's C++ logs quiet unless the user chose a level; lost ranks are reported in one line."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def start_ranks(name: str, config: ConfigModel, world: int, stop_timeout: float = 0.0) -> int:
    """Run `train` or `evaluate` on `world` ranks of this machine. Return the exit code of the first failure."""
    message = {"command": name, "parent": os.getpid(), "argv": sys.argv, "config": config.model_dump(mode="json")}
    return run_ranks(module_command("cli.rank_worker"), json.dumps(message), world, stop_timeout)
