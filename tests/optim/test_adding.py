"""An optimizer is added in four places: its own file, the config, a YAML, a test. One that is forgotten is an error."""

from pathlib import Path

import pytest

from tests.additions import Edit, copy_code, run_python

pytestmark = pytest.mark.slow
OWN_FILE = '''"""Gradient descent with momentum."""

from math import prod

from nanogpt.optim.declaration import FP32, OptimizerSpec


def build(groups, settings, ranks, fused):
    from torch.optim import SGD

    return SGD(groups, lr=settings.lr, momentum=settings.toy_momentum)


TOY = OptimizerSpec(
    keys=("toy_momentum",),
    decayed=frozenset(),
    width_scaled=frozenset(),
    whole_matrices=False,
    shardable=False,
    state_bytes=lambda kind, shape: FP32 * prod(shape),
    temporary_bytes=lambda matrices: 0,
    build=build,
)
'''
YAML = """# Gradient descent with momentum.
name: toy
lr: 0.01
betas: [0.9, 0.95]
weight_decay: 0.0
"""
CONFIG = "nanogpt/config/optimizer.py"
TABLE_ENTRY = Edit(CONFIG, ', "toy": TOY', after='"normuon": NORMUON')
EDITS = [
    Edit("nanogpt/optim/toy.py", OWN_FILE),
    Edit("conf/optimizer/toy.yaml", YAML),
    Edit(CONFIG, "from nanogpt.optim.toy import TOY\n", after="from nanogpt.optim.normuon import NORMUON\n"),
    Edit(CONFIG, ', "toy"', after='Rule = Literal["adamw", "muon", "normuon"'),
    TABLE_ENTRY,
    Edit(
        CONFIG,
        '    toy_momentum: Share = guarded(0.9, "toy: decay of the sum of gradients")\n',
        before="    grad_clip: float =",
    ),
]
CHECK = """
from cli.sweep_request import read_configs
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput

words = ["model=tiny", "optimizer=toy", "optimizer.toy_momentum=0.5"]
(config,) = read_configs("train", TrainConfig, words)
import torch
from nanogpt.model.gpt import GPT
from nanogpt.estimates.memory import estimate_memory
from nanogpt.optim.build import build_optimizer

network = config.model.with_vocab(9)
model = GPT(network, seed=1)
before = [p.detach().clone() for p in model.parameters()]
optimizer = build_optimizer(model, config.optimizer, "cpu")
for _ in range(2):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
assert all(torch.allclose(p, w - 0.01 - 0.01 * 1.5) for p, w in zip(model.parameters(), before))
assert estimate_memory(config, network, "fp32", 1).optimizer_state == 4 * sum(p.numel() for p in model.parameters())
for wrong in ("hardware.strategy=fsdp", "optimizer.betas=[0.8,0.9]", "optimizer.momentum=0.5"):
    try:
        read_configs("train", TrainConfig, [*words, wrong])
    except BadInput as error:
        print(error)
    else:
        raise SystemExit(f"{wrong} was taken")
"""


def test_four_places_add_an_optimizer(tmp_path: Path) -> None:
    done = run_python(copy_code(tmp_path, EDITS), "-c", CHECK)
    assert done.returncode == 0, done.stderr
    assert "hardware.strategy=fsdp: optimizer=toy needs whole matrices" in done.stdout
    assert "optimizer.betas=" in done.stdout and "is adamw's; give optimizer=adamw" in done.stdout
    assert "optimizer.momentum=0.5: is muon's; give optimizer=muon" in done.stdout


def test_a_forgotten_place_is_an_error(tmp_path: Path) -> None:
    for number, forgotten in enumerate((EDITS[0], EDITS[1], TABLE_ENTRY)):
        done = run_python(copy_code(tmp_path / str(number), [e for e in EDITS if e != forgotten]), "-c", CHECK)
        assert done.returncode != 0, forgotten
        assert "toy" in done.stderr, done.stderr
