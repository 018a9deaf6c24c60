"""nanoGPT's own files: its checkpoints in, ours out, and no pickle that gets to run anything."""

import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nanogpt.config import ExportConfig, SampleConfig, TrainConfig, TrainedConfig
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.generation.command import sample
from nanogpt.interop.export import export_model
from nanogpt.interop.load_model import load_run_model, load_trained
from nanogpt.interop.pickle_import import convert_meta, read_checkpoint
from nanogpt.interop.sources import find_source
from nanogpt.metrics_file import read_rows
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.tokenizer import CharTokenizer
from nanogpt.training.run import train
from tests import ranks
from tests.conftest import Run
from tests.model.test_gpt import randomize

CPU = torch.device("cpu")
ARGUMENTS = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 40, "dropout": 0.1}


def reference(bias: bool = True) -> Any:
    """transformers' GPT-2 with the exact GELU: the network that nanoGPT's model.py is."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 40}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **drops, activation_function="gelu"))
    randomize(model)
    if not bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
    return model


def checkpoint(model: Any, path: Path, bias: bool = True, prefix: str = "") -> Path:
    """Return what nanoGPT's train.py saves for that network: names as in GPT-2, matrices transposed."""
    flipped = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {
        prefix + name: (tensor.T if name.endswith(flipped) else tensor).clone()
        for name, tensor in model.state_dict().items()
        if bias or not name.endswith("bias")
    }
    optimizer = torch.optim.AdamW(model.parameters())
    about = {"iter_num": 7, "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char", "lr": 1e-3}}
    about |= {"optimizer": optimizer.state_dict(), "model_args": ARGUMENTS | {"bias": bias}}
    torch.save({"model": state} | about, path)
    return path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_the_same_weights_and_batch_give_the_same_loss_and_gradients(bias: bool, prefix: str, tmp_path: Path) -> None:
    theirs = reference(bias)
    path = checkpoint(theirs, tmp_path / "ckpt.pt", bias, prefix)
    (tmp_path / "tokenizer.json").write_text('{"kind": "char", "chars": "' + "".join(map(chr, range(48, 88))) + '"}')
    ours = load_trained(TrainedConfig(init_from=str(path)), CPU).model
    ids, targets = torch.randint(40, (3, 16)), torch.randint(40, (3, 16))
    loss = ours(ids, targets)
    expected = F.cross_entropy(theirs(ids).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    expected.backward()
    theirs_named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = theirs_named[name].grad
        gradient = gradient.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else gradient
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_loss_and_gradients_as_nanogpts_own_program(bias: bool, tmp_path: Path) -> None:
    """With nanoGPT's model.py itself, where NANOGPT names a checkout; ours is exported to it and its own read back."""
    if "NANOGPT" not in os.environ:
        pytest.skip("NANOGPT names no checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(os.environ["NANOGPT"]) / "model.py")
    assert spec is not None and spec.loader is not None
    program: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    theirs = program.GPT(program.GPTConfig(**ARGUMENTS | {"bias": bias, "dropout": 0.0}))
    randomize(theirs)
    torch.save({"model": theirs.state_dict(), "model_args": ARGUMENTS | {"bias": bias}}, tmp_path / "ckpt.pt")
    wanted = ExportConfig(init_from=str(tmp_path / "ckpt.pt"), tokenizer=chars(tmp_path), out=str(tmp_path / "again"))
    ours = load_trained(wanted, CPU).model
    ids, targets = torch.randint(40, (3, 16)), torch.randint(40, (3, 16))
    loss = ours(ids, targets) / 48
    loss.backward()
    expected = theirs(ids, targets)[1]
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-6)
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(dict(ours.named_parameters())[name].grad, parameter.grad, rtol=1e-4, atol=1e-6), name
    export_model(wanted.model_copy(update={"format": "nanogpt"}))
    content = torch.load(tmp_path / "again" / "ckpt.pt", weights_only=True)
    again = program.GPT(program.GPTConfig(**content["model_args"]))
    again.load_state_dict(content["model"])
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))


def chars(folder: Path) -> str:
    (folder / "tokenizer.json").write_text('{"kind": "char", "chars": "' + "".join(map(chr, range(48, 88))) + '"}')
    return str(folder)


@pytest.mark.slow
def test_fine_tuning_a_checkpoint(config: Callable[..., TrainConfig], run: Run, tmp_path: Path) -> None:
    """`init_from=ckpt.pt` on the command line: the run has the shape of the weights, and is found again."""
    path = checkpoint(reference(), tmp_path / "ckpt.pt")
    built = config()
    words = ["data=text", f"data.source={built.data.source}", "training.steps=3", "training.batch_tokens=64"]
    words += ["eval.tokens=256", "hardware.device=cpu", "hardware.threads=1", "tracking.log_every=1"]
    done = run("train.py", f"init_from={path}", *words)
    assert done.returncode == 0, done.stderr
    assert "runs/ckpt-text-" in done.stdout and "1 micro-batch of 4 x 16" in done.stdout
    again = run("train.py", f"init_from={path}", *words)
    assert "finished already" in again.stdout
    path.unlink()
    done = run("train.py", f"init_from={path}", *words)
    assert done.returncode == 2 and "no such weights" in done.stderr


def test_a_run_goes_on_from_another_run(config: Callable[..., TrainConfig]) -> None:
    """Fine-tuning one's own run, and continuing that without the weights it began with."""
    first = config(**{"training.steps": 10})
    train(first)
    trained = load_run_model(RunDirectory(locate_run(first)), "best", CPU).model
    second = config(init_from=str(locate_run(first)), **{"training.steps": 1, "optimizer.lr": 1e-12})
    train(second)
    tuned = load_run_model(RunDirectory(locate_run(second)), "latest", CPU).model
    for name, parameter in tuned.named_parameters():
        assert torch.allclose(parameter, dict(trained.named_parameters())[name], atol=1e-9), name


def test_every_rank_starts_from_the_weights(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The evaluation of step 0 is that of the weights, to the bit, on one rank and on two."""
    first = config(**{"training.steps": 10})
    train(first)
    last = read_rows(locate_run(first) / "metrics.jsonl")[-1]["val_loss"]
    for world in (1, 2):
        tuned = config(init_from=str(locate_run(first)), runs_dir=str(tmp_path / str(world)), **{"training.steps": 2})
        codes, output = ranks.run(tuned, world)
        assert codes == [0] * world, output
        assert read_rows(locate_run(tuned) / "metrics.jsonl")[0]["val_loss"] == last


def test_block_size_is_cut(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    path = checkpoint(reference(), tmp_path / "ckpt.pt")
    built = config(
        init_from=str(path),
        **{"training.steps": 0, "model.block_size": 8, "model.vocab_size": 40, "model.activation": "gelu"},
    )
    train(built)
    cut = load_run_model(RunDirectory(locate_run(built)), "latest", CPU).model
    _, weights = read_checkpoint(path)
    assert torch.equal(cut.transformer["wpe"].weight, weights["transformer.wpe.weight"][:8])


def test_export_of_what_muon_trained(
    config: Callable[..., TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """nanoGPT has no Muon: weights are exported without optimizer state, which the output says."""
    built = config(**{"training.steps": 2, "model.activation": "gelu", "optimizer.name": "muon"})
    train(built)
    export_model(
        ExportConfig(runs_dir=built.runs_dir, format="nanogpt", out=str(tmp_path / "out"), checkpoint="latest")
    )
    assert (
        "ckpt.pt has no optimizer state: nanoGPT has no muon; it can sample from it, but not resume"
        in capsys.readouterr().out
    )
    content = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    assert "optimizer" not in content and content["iter_num"] == 2
    assert content["model"].keys() >= {"transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"}


def test_export_for_nanogpt(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The file has what nanoGPT's sample.py and its resume read, under its names; its optimizer takes the moments."""
    built = config(**{"training.steps": 4, "model.activation": "gelu", "model.vocab_multiple": 64})
    train(built)
    out = tmp_path / "out"
    wanted = ExportConfig(runs_dir=built.runs_dir, format="nanogpt", out=str(out), checkpoint="latest")
    export_model(wanted)
    content = torch.load(out / "ckpt.pt", weights_only=True)
    ours = load_trained(wanted, CPU)
    assert content["iter_num"] == 4 and content["model_args"]["vocab_size"] == len(ours.tokenizer.tokens)
    assert content["model"]["lm_head.weight"].shape == (len(ours.tokenizer.tokens), 16)
    # nanoGPT's configure_optimizers: two groups of its parameters in order
    parameters = [torch.nn.Parameter(t) for name, t in content["model"].items() if name != "lm_head.weight"]
    groups = [{"params": [p for p in parameters if p.dim() >= 2]}, {"params": [p for p in parameters if p.dim() < 2]}]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(content["optimizer"])
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape and optimizer.state[p]["step"] == 4 for p in parameters)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1 and optimizer.param_groups[1]["weight_decay"] == 0
    # and back: the same characters, the same logits
    assert convert_meta(out / "meta.pkl").exists()
    again = load_trained(TrainedConfig(init_from=str(out / "ckpt.pt")), CPU)
    assert isinstance(again.tokenizer, CharTokenizer) and again.tokenizer.tokens == ours.tokenizer.tokens
    ids = torch.randint(len(ours.tokenizer.tokens), (2, 16))
    assert torch.equal(again.model(ids), ours.model(ids)[..., : len(ours.tokenizer.tokens)])
    with pytest.raises(BadInput, match=r"model.activation=gelu_tanh: nanoGPT has no such form"):
        other = config(**{"training.steps": 1})
        train(other)
        export_model(wanted.model_copy(update={"run": str(locate_run(other)), "out": str(tmp_path / "no")}))
    assert not (tmp_path / "no").exists()


class Canary:
    """A pickle of this would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("position", ["plain", "model", "arguments", "legacy"])
def test_a_malicious_checkpoint_runs_nothing(position: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    evil = Canary(canary)
    if position == "plain":
        path.write_bytes(pickle.dumps(evil))
    else:
        content = {
            "model": {"w": evil if position == "model" else torch.zeros(1)},
            "model_args": ARGUMENTS | {"bias": evil},
        }
        torch.save(content, path, _use_new_zipfile_serialization=position != "legacy")
    with pytest.raises(BadCheckpoint, match=r"can't be read safely|not a checkpoint"):
        find_source(str(path)).values()
    with pytest.raises(BadCheckpoint):
        sample(SampleConfig(init_from=str(path), tokenizer=chars(tmp_path)))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it has no model and model_args"),
        ({"model": {}}, "it has no model and model_args"),
        ({"model": {}, "model_args": {"n_layer": 1}}, "model_args lacks n_head, n_embd, block_size, vocab_size, bias"),
        ({"model": {"x": 1}, "model_args": ARGUMENTS}, "x is not a tensor"),
    ],
)
def test_a_foreign_checkpoint_is_named(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(BadCheckpoint, match=message):
        find_source(str(tmp_path / "ckpt.pt")).values()
