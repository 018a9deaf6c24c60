"""Train a GPT:  python train.py model=gpt2_medium data=openwebtext  (see --help)"""

import os

from conf.door import enter
from nanogpt.config import TrainConfig


def main(config: TrainConfig) -> int:
    """Train, or continue, or say that the run is finished."""
    if (config.hardware.devices or 1) > 1 and not (config.replay or config.plan) and "RANK" not in os.environ:
        from launch.ranks import run_ranks

        return run_ranks(config)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a lost rank is told in a line, not in pages of C++
    from nanogpt.training.run import train  # torch: not for --help

    return train(config)


if __name__ == "__main__":
    enter("train", TrainConfig, main)
