"""Keys of `model`: the network."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from nanogpt.config.types import Name, Share
from nanogpt.fields import fixed, free
from nanogpt.schema import ConfigModel, field_error

Activation = Literal["gelu", "gelu_tanh", "relu2", "swiglu"]
ConvPlace = Literal["attention", "qkv", "mlp"]


class ModelConfig(ConfigModel):
    """The network. The defaults are GPT-2 small."""

    name: Name = free("custom", "label, used in the default run name")
    n_layer: int = fixed(12, "transformer blocks", ge=1, le=1000)
    n_head: int = fixed(12, "attention heads, a divisor of n_embd", ge=1, le=1024)
    n_embd: int = fixed(768, "width of the residual stream, channels", ge=1, le=65_536)
    block_size: int = fixed(1024, "context length, tokens", ge=1, le=1_048_576)
    vocab_size: int | None = fixed(None, "number of token ids; null: as many as the tokenizer has", ge=2, le=2**31)
    vocab_multiple: int = fixed(
        1, "pad the embedding's rows to a multiple of this; padded ids are never predicted", ge=1, le=65_536
    )
    dropout: Share = fixed(0.0, "probability of zeroing an activation in training")
    bias: bool = fixed(True, "biases in linear layers and layer norms")
    activation: Activation = fixed(
        "gelu_tanh", "MLP activation: GELU, GELU with tanh as in OpenAI's GPT-2, squared ReLU, or SwiGLU"
    )
    norm: Literal["layernorm", "rmsnorm"] = fixed("layernorm", "kind of the normalization layers")
    norm_affine: bool = fixed(True, "norms have learned gains, and with model.bias=true shifts", was="norm_weight")
    position: Literal["learned", "rotary"] = fixed(
        "learned", "learned position embeddings, or rotary embeddings of queries and keys"
    )
    rope_base: float = fixed(
        10_000.0, "position=rotary: base of the rotation frequencies", gt=1, le=1e9, allow_inf_nan=False
    )
    qk_norm: bool = fixed(False, "apply RMS norm to each head's queries and keys")
    n_kv_head: int | None = fixed(
        None, "key/value heads (grouped-query attention), a divisor of n_head; null: n_head", ge=1, le=1024
    )
    tie_weights: bool = fixed(True, "share the token embedding's matrix with the output layer", was="tied_head")
    logit_softcap: float | None = fixed(
        None,
        "cap s of the logits: s * tanh(logits / s); null: no cap",
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        was="softcap",
    )
    conv: Annotated[tuple[ConvPlace, ...], Field(strict=False)] = fixed(
        (), "add short causal convolutions to the input of attention or mlp, or to queries, keys and values (qkv)"
    )
    conv_history: int = fixed(3, "earlier positions that each short convolution covers", ge=1, le=64, was="conv_taps")
    init: Literal["gpt2", "fan_in"] = fixed(
        "gpt2", "gpt2: normal(0, 0.02); fan_in: embeddings normal(0, 1), matrices uniform with std 0.5 / sqrt(inputs)"
    )
    zero_init: bool = fixed(
        False, "zero-initialize the output projections of attention and MLP, and the head if untied"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_embd % self.n_head:
            below = max(h for h in range(1, self.n_head) if self.n_embd % h == 0)
            above = [h for h in range(self.n_head, self.n_embd + 1) if self.n_embd % h == 0][:1]
            why = f"must divide model.n_embd={self.n_embd}; nearest {', '.join(map(str, [below, *above]))}"
            raise field_error("model.n_head", self.n_head, why)
        if self.n_head % self.kv_heads:
            divisors = [h for h in range(1, self.n_head + 1) if self.n_head % h == 0]
            why = f"must divide model.n_head={self.n_head}; allowed: {', '.join(map(str, divisors))}"
            raise field_error("model.n_kv_head", self.n_kv_head, why)
        if self.is_rotary and self.head_size % 2:
            why = f"heads of {self.head_size} channels (n_embd / n_head) can't be rotated in pairs"
            raise field_error("model.position", self.position, why)
        if twice := [place for place in self.conv if self.conv.count(place) > 1]:
            raise field_error("model.conv", f"[{','.join(self.conv)}]", f"names {twice[0]} more than once")
        return self

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: fewer than `n_head` share them among groups of queries (Ainslie et al. 2023)."""
        return self.n_kv_head or self.n_head

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        """Channels of a position's queries, keys and values, stored in one matrix in this order."""
        return self.n_embd, self.kv_heads * self.head_size, self.kv_heads * self.head_size

    @property
    def is_gated(self) -> bool:
        """True if the MLP multiplies its values by a gate, both from one wider matrix."""
        return {"gelu": False, "gelu_tanh": False, "relu2": False, "swiglu": True}[self.activation]

    @property
    def norm_subtracts_mean(self) -> bool:
        """True if norms subtract the mean, and so may have shifts."""
        return {"layernorm": True, "rmsnorm": False}[self.norm]

    @property
    def is_rotary(self) -> bool:
        """True if queries and keys are rotated; False if each position has an embedding."""
        return {"learned": False, "rotary": True}[self.position]

    @property
    def mlp_width(self) -> int:
        """Channels inside the MLP: 4 C, or with a gate (three matrices) 8/3 C rounded up to a multiple of 64."""
        return -(-8 * self.n_embd // 192) * 64 if self.is_gated else 4 * self.n_embd

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding. Needs `vocab_size`, which `with_vocab` fills in from the data."""
        assert self.vocab_size is not None
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """Return this config with the tokenizer's vocabulary size, unless it has its own."""
        return self if self.vocab_size is not None else self.model_copy(update={"vocab_size": vocab_size})
