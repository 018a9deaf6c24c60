"""`python -m cli.rank_worker`: one rank started by cli/actions.py, with its command and config as JSON on stdin."""

import json
import os
import sys

from cli.actions import evaluate, train
from cli.entry import exit_on_error, prepare_output
from nanogpt import schema
from nanogpt.config import EvaluateConfig, TrainConfig
from nanogpt.distributed.spawn import die_with_parent
from nanogpt.errors import PeerLost


def run_rank() -> int:
    """Train or evaluate as the message on standard input says. Return the exit code."""
    message = json.load(sys.stdin)
    die_with_parent()
    if os.getppid() != message["parent"]:
        return PeerLost.exit_code  # the parent ended before die_with_parent
    sys.argv = message["argv"]
    if message["command"] == "train":
        return train(schema.from_dict(TrainConfig, message["config"]))
    assert message["command"] == "evaluate"
    config = schema.from_dict(EvaluateConfig, message["config"])
    prepare_output(config)
    return evaluate(config)


if __name__ == "__main__":
    exit_on_error("rank", run_rank)
