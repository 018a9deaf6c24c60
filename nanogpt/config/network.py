"""The network."""

from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from nanogpt.config.fields import Name, Share
from nanogpt.schema import Section, fixed, free, refuse


class ModelConfig(Section):
    """The network. The defaults are GPT-2 small."""

    name: Name = free("custom", "label, the first half of a run's default name")
    n_layer: int = fixed(12, "transformer blocks", ge=1, le=1000)
    n_head: int = fixed(12, "attention heads, a divisor of n_embd", ge=1, le=1024)
    n_embd: int = fixed(768, "width of the residual stream, channels", ge=1, le=65_536)
    block_size: int = fixed(1024, "context length, tokens", ge=1, le=1_048_576)
    vocab_size: int | None = fixed(None, "token ids; null takes the tokenizer's", ge=2, le=2**31)
    vocab_multiple: int = fixed(
        1, "pads the embedding rows to a multiple of this; no padded id is ever predicted", ge=1, le=65_536
    )
    dropout: Share = fixed(0.0, "probability of zeroing an activation in training")
    bias: bool = fixed(True, "biases in linear layers and layer norms")
    activation: Literal["gelu", "gelu_tanh"] = fixed("gelu_tanh", "exact erf form, or the tanh form of OpenAI's GPT-2")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            below = max(h for h in range(1, self.n_head) if self.n_embd % h == 0)
            above = [h for h in range(self.n_head, self.n_embd + 1) if self.n_embd % h == 0][:1]
            why = f"must divide model.n_embd={self.n_embd}; nearest {', '.join(map(str, [below, *above]))}"
            raise refuse("model.n_head", self.n_head, why)
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding. Needs `vocab_size`, which `with_vocab` fills in from the data."""
        assert self.vocab_size is not None
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """This model with the tokenizer's vocabulary size where none was asked for."""
        return self if self.vocab_size is not None else self.model_copy(update={"vocab_size": vocab_size})
