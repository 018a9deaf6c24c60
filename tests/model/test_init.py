"""muP's initialisation: deviations by the width, for both ways to initialise."""

import pytest

from nanogpt.model.gpt import GPT
from tests.model.test_gpt import small

FORM = {"position": "learned", "tie_weights": False, "vocab_size": 600, "block_size": 64, "n_head": 4}
WIDER = {  # Yang et al. 2022, table 3: what four times the width does to a standard deviation
    "transformer.wte.weight": 1.0,
    "transformer.wpe.weight": 1.0,
    "transformer.h.0.attn.c_attn.weight": 0.5,
    "transformer.h.0.attn.c_proj.weight": 0.5,
    "transformer.h.0.mlp.c_fc.weight": 0.5,
    "transformer.h.0.mlp.c_proj.weight": 0.5,
    "lm_head.weight": 0.25,
}


@pytest.mark.parametrize("init", ["gpt2", "fan_in"])
def test_a_model_four_times_wider(init: str) -> None:
    narrow = dict(GPT(small(**FORM, init=init, n_embd=64)).named_parameters())
    wide = dict(GPT(small(**FORM, init=init, n_embd=256), width_multiplier=4.0).named_parameters())
    for name, ratio in WIDER.items():
        assert float(wide[name].detach().std() / narrow[name].detach().std()) == pytest.approx(ratio, rel=0.03), name
