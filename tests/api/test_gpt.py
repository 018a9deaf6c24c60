"""nanoGPT's methods of a model, against plain formulas and transformers."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import nanogpt
from nanogpt.errors import BadInput

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 50}


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))


def test_forward(ids: torch.Tensor) -> None:
    model = nanogpt.GPT(nanogpt.GPTConfig(**SMALL))
    targets = ids.clone()
    targets[0, :5] = -1
    logits, loss = model(ids, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits[targets >= 0], targets[targets >= 0]))
    last, none = model(ids)
    assert none is None
    torch.testing.assert_close(last[:, 0], logits[:, -1])


def test_dropout_follows_the_mode_and_torchs_seed(ids: torch.Tensor) -> None:
    model = nanogpt.GPT(nanogpt.GPTConfig(**SMALL, dropout=0.5))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(ids, ids)[1].item()

    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


def test_generate_appends_the_likeliest_tokens(ids: torch.Tensor) -> None:
    model = nanogpt.GPT(nanogpt.GPTConfig(**SMALL)).eval()
    longer = model.generate(ids[:, :4], 6, top_k=1)
    assert longer.shape == (3, 10) and longer.dtype == ids.dtype and torch.equal(longer[:, :4], ids[:, :4])
    for n in range(4, 10):
        assert torch.equal(model(longer[:, :n])[0][:, 0].argmax(1), longer[:, n])


def test_crop_block_size(ids: torch.Tensor) -> None:
    model = nanogpt.GPT(nanogpt.GPTConfig(**SMALL))
    before = model(ids[:, :8])[0]
    model.crop_block_size(8)
    assert model.config.block_size == 8 and model.transformer["wpe"].weight.shape == (8, 32)
    assert torch.equal(model(ids[:, :8])[0], before)
    with pytest.raises(BadInput, match="block_size=9: allowed: 1 to 8"):
        model.crop_block_size(9)


def test_configure_optimizers_and_sizes() -> None:
    model = nanogpt.GPT(nanogpt.GPTConfig(**SMALL))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.1 for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.dim() >= 2}
    n = sum(p.numel() for p in model.parameters()) - 16 * 32
    assert model.get_num_params() == n
    flops = (6 * n + 12 * 2 * 32 * 16) * 16 * 10  # nanoGPT's formula, 10 sequences
    assert model.estimate_mfu(10, 0.5) == pytest.approx(flops / 0.5 / 312e12)


def test_from_pretrained(tmp_path: Path) -> None:
    """A folder that transformers wrote, cut to half its context, with dropout set."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=50)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    model = nanogpt.GPT.from_pretrained(str(tmp_path), dropout=0.2, block_size=8).eval()
    assert model.config.dropout == 0.2 and model.config.block_size == 8
    ids = torch.randint(50, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, ids)[0], theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_wrong_settings_have_the_messages_of_the_command_line() -> None:
    with pytest.raises(BadInput, match="n_layers: no such key; did you mean 'n_layer'"):
        nanogpt.GPTConfig(n_layers=3)
    with pytest.raises(BadInput, match="dropout=2"):
        nanogpt.GPTConfig(dropout=2)
