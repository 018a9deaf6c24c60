"""An optimizer is added in four places: its own file, the config, a YAML, a test. One that is forgotten is an error."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("nanogpt", "cli", "conf", "launch")
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
CONFIG = {
    "from nanogpt.optim.normuon import NORMUON\n": "from nanogpt.optim.toy import TOY\n",
    'Rule = Literal["adamw", "muon", "normuon"': ', "toy"',
    '"normuon": NORMUON': ', "toy": TOY',
    "    grad_clip: float =": None,
}
KEY = '    toy_momentum: Share = guarded(0.9, "toy: decay of the sum of gradients")\n'
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


def add_toy(folder: Path, leave_out: str = "") -> Path:
    """Copy the code and add an optimizer to it, but for one place."""
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name)  # compiled files too: they need not be made again
    if leave_out != "file":
        (folder / "nanogpt/optim/toy.py").write_text(OWN_FILE)
    if leave_out != "yaml":
        (folder / "conf/optimizer/toy.yaml").write_text(YAML)
    recipe = folder / "nanogpt/config/optimizer.py"
    text = recipe.read_text()
    for old, added in CONFIG.items():
        assert text.count(old) == 1, old
        new = KEY + old if added is None else old + added
        text = text if added == leave_out else text.replace(old, new)
    recipe.write_text(text)
    return folder


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """Use the optimizer in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", CHECK], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def test_four_places_add_an_optimizer(tmp_path: Path) -> None:
    done = check(add_toy(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "hardware.strategy=fsdp: can't be with optimizer=toy" in done.stdout
    assert "optimizer.betas=" in done.stdout and "is adamw's; give optimizer=adamw" in done.stdout
    assert "optimizer.momentum=0.5: is muon's; give optimizer=muon" in done.stdout


def test_a_place_that_is_forgotten_is_an_error(tmp_path: Path) -> None:
    for number, leave_out in enumerate(("file", "yaml", ', "toy": TOY')):
        done = check(add_toy(tmp_path / str(number), leave_out))
        assert done.returncode != 0, leave_out
        assert "toy" in done.stderr, done.stderr
