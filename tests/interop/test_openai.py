"""OpenAI's four models by name: out of the hub's cache, without it, and cut to a smaller context.

The weights can't be downloaded here: models of the same shapes with random weights, saved by transformers in the
cache of the hub's client, replace them.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from cli.sweep_request import read_configs
from nanogpt.config import TrainConfig, TrainedConfig
from nanogpt.interop.architecture import GPT2_SIZES
from nanogpt.interop.load_model import load_trained
from nanogpt.interop.load_weights import load_weights
from nanogpt.interop.sources import HUB, find_source
from nanogpt.model.gpt import GPT
from tests.conftest import Run

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


@contextmanager
def cached(name: str, hub: Path, ids: torch.Tensor) -> Generator[torch.Tensor, None, None]:
    """Put random weights of a size into a cache of the hub, and return their logits in transformers."""
    n_layer, n_head, n_embd = GPT2_SIZES[name]
    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    model = model.to_empty(device="cpu").eval()
    model.tie_weights()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if key.endswith("ln_f.weight") or ".ln_" in key else 0.0, 0.02)
    folder = hub / ("models--" + HUB[name].replace("/", "--"))
    snapshot = folder / "snapshots" / ("0" * 40)
    model.transformer.save_pretrained(snapshot)  # without the head: names as in OpenAI's files
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    with torch.no_grad():
        logits = model(ids).logits
    del model
    try:
        yield logits
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(GPT2_SIZES))
def test_logits_of_every_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_files: None) -> None:
    """fp32, within 1e-4."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    ids = torch.randint(50_257, (1, 24))
    with cached(name, tmp_path, ids) as expected:
        model = load_trained(TrainedConfig(init_from=name), CPU).model
    with torch.no_grad():
        assert torch.allclose(model(ids), expected, atol=1e-4)


FINE_TUNING = ["init_from=gpt2", "data=shakespeare", "model.block_size=64", "model.dropout=0.1"]


def test_fine_tuning_by_name() -> None:
    """`init_from=gpt2` is enough; block_size and dropout may be another."""
    config = read_configs("train", TrainConfig, FINE_TUNING)[0]
    assert (config.model.n_layer, config.model.activation, config.model.bias) == (12, "gelu_tanh", True)
    assert (config.model.block_size, config.model.dropout, config.run_name) == (64, 0.1, "gpt2-shakespeare")


@pytest.mark.slow
def test_weights_by_name_in_a_shorter_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding rows may be there."""
    config = read_configs("train", TrainConfig, FINE_TUNING)[0]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = GPT(config.model).eval()
    ids = torch.randint(50_257, (1, 64))
    with cached("gpt2", tmp_path, ids) as expected, torch.no_grad():
        load_weights(model, find_source("gpt2"))
        assert torch.allclose(model(ids)[..., :50_257], expected, atol=1e-4)
    assert model.token_embedding.weight.shape[0] == 50_304 and (model.token_embedding.weight[50_257:] == 0).all()


def test_an_explicit_model_of_the_same_shape_is_taken() -> None:
    config = read_configs("train", TrainConfig, ["init_from=gpt2", "data=shakespeare", "model=gpt2"])[0]
    assert config.training.tokens_per_param == 20, "a model's own horizon, not that of a fine-tuning"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("init_from=gpt3", "no such weights; allowed: scratch, gpt2, gpt2_medium.*did you mean 'gpt2'"),
        ("init_from=gpt2-medium", "did you mean 'gpt2_medium'"),
        ("init_from=conf", "a folder without config.json"),
        ("init_from=gpt2 model=tiny", "model.n_layer=4: doesn't fit init_from=gpt2; allowed: 12, or leave it"),
        ("init_from=gpt2 model.block_size=2048", "model.block_size=2048: doesn't fit .*allowed: at most 1024"),
        ("init_from=gpt2 model.bias=false", "model.bias=false: doesn't fit init_from=gpt2; allowed: true"),
        ("init_from=gpt2 model.activation=gelu", "model.activation=gelu: doesn't fit .*allowed: gelu_tanh"),
        ("init_from=gpt2 model.vocab_size=65", "model.vocab_size=65: doesn't fit .*allowed: 50257"),
        ("init_from=gpt2 model.block_size=1000", "training.batch_tokens=32768: must be a multiple"),
        ("model=pretrained", "takes its shape from weights; say which, e.g. init_from=gpt2"),
        ("init_from=", "init_from="),
        ("init_from=null", "init_from=null"),
        ("init_from=7", "init_from=7"),
    ],
)
def test_what_doesn_t_fit_is_named(words: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        read_configs("train", TrainConfig, words.split())
    assert getattr(caught.value, "exit_code", None) in (2, 4)


@pytest.mark.parametrize("why", ["HF_HUB_OFFLINE", "HF_ENDPOINT"])
def test_offline_it_ends_at_once(why: str, run: Run, gpt2_files: None, tmp_path: Path) -> None:
    """With the cache empty, by the user's word or because nothing answers: one line, exit code 5, nothing made."""
    values = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run("sample.py", "init_from=gpt2_medium", HF_HOME=str(tmp_path), **{why: values[why]})
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: openai-community/gpt2-medium/model.safetensors: not in the cache")
    assert done.stderr.count("\n") == 1 and "init_from=path/to/gpt2-medium" in done.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_data_in_other_tokens_is_refused(run: Run, gpt2_files: None, corpus: Path, tmp_path: Path) -> None:
    words = ["data=text", f"data.source={corpus}", "hardware.device=cpu"]
    done = run("train.py", "init_from=gpt2", "model.block_size=64", *words)
    assert done.returncode == 3 and "use data.tokenizer=gpt2" in done.stderr
    assert not (tmp_path / "work" / "runs").exists()


def test_the_recipe() -> None:
    """nanoGPT's config/finetune_shakespeare.py."""
    config = read_configs("train", TrainConfig, ["experiment=finetune_shakespeare"])[0]
    assert (config.model.n_layer, config.model.n_embd, config.training.steps) == (48, 1600, 20)
    assert (config.batch_sequences, config.micro_batch_size(), config.model.dropout) == (32, 1, 0.0)
    assert (config.optimizer.lr, config.schedule.name, config.eval.every) == (3e-5, "constant", 5)
    small = read_configs("train", TrainConfig, ["experiment=finetune_shakespeare", "init_from=gpt2"])[0]
    assert (small.model.n_layer, small.init_from) == (12, "gpt2")
