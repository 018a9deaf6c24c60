"""Train a GPT:  python train.py model=gpt2_medium data=openwebtext  (see --help)"""

from conf.door import enter
from nanogpt.config import TrainConfig


def main(config: TrainConfig) -> int:
    """Train, or continue, or say that the run is finished."""
    from nanogpt.training.run import train  # torch: not for --help

    return train(config)


if __name__ == "__main__":
    enter("train", TrainConfig, main)
