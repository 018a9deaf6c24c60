"""Numbers about a trained model:  python evaluate.py run=runs/… eval=hellaswag  (see --help)"""

import os

from conf.door import enter
from nanogpt.config import EvaluateConfig
from nanogpt.place import adopt_slurm


def main(config: EvaluateConfig) -> int:
    """Evaluate and print."""
    adopt_slurm(os.environ)
    if (config.devices or 1) > 1 and "RANK" not in os.environ:
        from launch.ranks import run_ranks

        return run_ranks("evaluate", config, config.devices or 1)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # a lost rank is told in a line, not in pages of C++
    from nanogpt.evaluating import evaluate  # torch: not for --help

    return evaluate(config)


if __name__ == "__main__":
    enter("evaluate", EvaluateConfig, main)
