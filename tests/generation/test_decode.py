"""Decoding over the cache gives what decoding without one gives, also past block_size."""

import itertools

import pytest
import torch

from nanogpt.config import ModelConfig
from nanogpt.generation.cpu_decode import speed_up_cpu_decoding
from nanogpt.generation.decode import SamplingParams, generate, next_token_probs
from nanogpt.model.gpt import GPT
from nanogpt.model.kv_cache import KVCache

CONFIG = ModelConfig(n_layer=3, n_head=2, n_embd=32, block_size=16, vocab_size=60, vocab_multiple=64)
MODERN = ModelConfig(
    n_layer=3,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    block_size=16,
    vocab_size=60,
    norm="rmsnorm",
    position="rotary",
    activation="swiglu",
    qk_norm=True,
    tie_weights=False,
    bias=False,
)
FAST = ModelConfig.model_validate(
    MODERN.model_dump()
    | {
        "logit_softcap": 3.0,
        "conv": ["attention", "qkv", "mlp"],
        "conv_history": 4,
        "norm_affine": False,
        "block_size": 16,
    }
)


@pytest.fixture(params=[CONFIG, MODERN, FAST], ids=["gpt2", "modern", "fast"])
def model(request: pytest.FixtureRequest) -> GPT:
    model = GPT(request.param, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3)  # sharper than at initialisation, so that mistakes show
            if "conv" in name:
                parameter.normal_(0, 0.5, generator=generator)
    return model


@pytest.mark.parametrize("first", [1, 5, 15])
def test_cached_logits_are_the_uncached_ones(model: GPT, first: int) -> None:
    ids = torch.randint(60, (2, 16))
    cache = KVCache(model.config, 2, ids.device, torch.float64)
    whole = model.double()(ids)[..., :60]
    assert torch.allclose(model.next_logits(ids[:, :first], cache), whole[:, first - 1], atol=1e-9)
    for t in range(first, 16):
        assert torch.allclose(model.next_logits(ids[:, t : t + 1], cache), whole[:, t], atol=1e-9)
    assert cache.length == 16


def test_several_positions_after_a_cache_see_what_they_should(model: GPT) -> None:
    ids = torch.randint(60, (2, 16))
    cache = KVCache(model.config, 2, ids.device, torch.float64)
    whole = model.double()(ids)
    for first, last in ((0, 5), (5, 12), (12, 16)):
        assert torch.allclose(model(ids[:, first:last], cache=cache), whole[:, first:last], atol=1e-9)


def naive(model: GPT, prompt: list[int], count: int, draw: SamplingParams, generator: torch.Generator) -> list[int]:
    """Generate as nanoGPT does: crop to block_size, run the whole window, take the last logits."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids[-16:]]))[:, -1, :60]
        ids.append(int(torch.multinomial(next_token_probs(logits, draw), 1, generator=generator)))
    return ids[len(prompt) :]


@pytest.mark.parametrize("prompt", [[1, 2, 3, 4, 5], list(range(16)), list(range(40))], ids=len)
@pytest.mark.parametrize(
    "draw",
    [SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_k=20, top_p=0.9)],
    ids=["greedy", "drawn"],
)
def test_generation_is_nanogpts_without_its_cost(model: GPT, prompt: list[int], draw: SamplingParams) -> None:
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    with torch.inference_mode():
        expected = naive(model, prompt, 24, draw, generators[0])
    assert [row[0] for row in generate(model, [prompt], 24, draw, [generators[1]])] == expected


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_batch_of_prompts_gives_what_each_gives_alone(model: GPT, penalty: float) -> None:
    """Of different lengths, past block_size, each with its own draws."""
    prompts = [[3], [1, 2, 3, 4, 5], list(range(16)), list(range(40))]
    draw = SamplingParams(repetition_penalty=penalty, temperature=0.9, top_k=20, vocab_size=58)

    def generator(row: int) -> torch.Generator:
        return torch.Generator().manual_seed(row)

    alone = [
        [tokens[0] for tokens in generate(model, [prompt], 30, draw, [generator(row)])]
        for row, prompt in enumerate(prompts)
    ]
    together = list(generate(model, prompts, 30, draw, [generator(row) for row in range(4)]))
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone
    assert max(map(max, alone)) < 58


def test_the_layout_for_decoding_changes_nothing_but_speed(model: GPT) -> None:
    ids = torch.randint(60, (1, 16))
    with torch.inference_mode():
        before = model(ids)
        speed_up_cpu_decoding(model, 1)
        assert torch.allclose(model(ids), before, atol=5e-5)
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert any(not weight.is_contiguous() for weight in weights)


def test_the_rules_are_those_of_transformers() -> None:
    """Probabilities equal those of its processors, applied in its order, over random logits."""
    process = pytest.importorskip("transformers.generation.logits_process")
    torch.manual_seed(0)
    logits, seen = 3 * torch.randn(16, 60), torch.randint(60, (16, 12))
    mask = torch.zeros(16, 60, dtype=torch.bool).scatter_(1, seen, True)
    draw = SamplingParams(repetition_penalty=1.3, temperature=0.7, top_k=40, top_p=0.9, min_p=0.02)
    theirs = logits.clone()
    for rule in (
        process.RepetitionPenaltyLogitsProcessor(1.3),
        process.TemperatureLogitsWarper(0.7),
        process.TopKLogitsWarper(40),
        process.TopPLogitsWarper(0.9),
        process.MinPLogitsWarper(0.02),
    ):
        theirs = rule(seen, theirs)
    ours = next_token_probs(logits, draw, mask)
    assert torch.allclose(ours, theirs.softmax(1), atol=1e-6)
    assert ((ours > 0).sum(1) < 40).all()


def test_tokens_come_one_by_one(model: GPT) -> None:
    stream = generate(model, [[1]], 10**9, SamplingParams(), [torch.Generator()])
    assert len(list(itertools.islice(stream, 3))) == 3


def test_the_seed_decides_the_sample(model: GPT) -> None:
    def sample(seed: int) -> list[int]:
        drawn = generate(model, [[1]], 30, SamplingParams(temperature=2.0), [torch.Generator().manual_seed(seed)])
        return [row[0] for row in drawn]

    assert sample(1) == sample(1) != sample(2)
    assert all(token < 60 for token in sample(1))


def test_filters() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    full = logits.softmax(1)
    assert torch.allclose(next_token_probs(logits, SamplingParams()), full)
    assert torch.allclose(next_token_probs(logits, SamplingParams(temperature=0.5)), (2 * logits).softmax(1))
    assert next_token_probs(logits, SamplingParams(temperature=0)).tolist() == [[1, 0, 0, 0]]
    assert torch.allclose(
        next_token_probs(logits, SamplingParams(top_k=2)),
        torch.tensor([[full[0, 0], full[0, 1], 0, 0]]) / full[0, :2].sum(),
    )
    assert torch.allclose(next_token_probs(logits, SamplingParams(top_k=9)), full)
    # probabilities 0.64 0.24 0.09 0.03: the first two are needed to reach 0.7
    assert (next_token_probs(logits, SamplingParams(top_p=0.7)) > 0).tolist() == [[True, True, False, False]]
    assert (next_token_probs(logits, SamplingParams(top_p=1e-9)) > 0).tolist() == [[True, False, False, False]]
    # equal logits: exactly k stay
    assert (next_token_probs(torch.zeros(1, 8), SamplingParams(top_k=3)) > 0).sum() == 3
