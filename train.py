"""Train a GPT:  python train.py model=gpt2_medium data=openwebtext  (see --help)"""

import os
from typing import TYPE_CHECKING

from conf.door import enter
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput
from nanogpt.place import adopt_slurm

if TYPE_CHECKING:
    from conf.reading import Sweep


def main(config: TrainConfig) -> int:
    """Train, or continue, or say that the run is finished."""
    adopt_slurm(os.environ)
    if "RANK" not in os.environ and not (config.replay or config.plan):
        if (config.hardware.nodes or 1) > 1:
            raise BadInput(f"hardware.nodes={config.hardware.nodes}: needs python -m launch submit, or torchrun")
        if (config.hardware.devices or 1) > 1:
            from launch.ranks import run_ranks

            return run_ranks("train", config, config.hardware.devices or 1, config.checkpoint.grace)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a lost rank is told in a line, not in pages of C++
    from nanogpt.training.run import train  # torch: not for --help

    return train(config)


def sweep(asked: "Sweep[TrainConfig]") -> int:
    """Run the points of a study, here or as jobs."""
    from launch.sweep import run_sweep

    return run_sweep(asked, main)


if __name__ == "__main__":
    enter("train", TrainConfig, main, sweep)
