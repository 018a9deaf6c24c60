"""Bodies of requests. Parameters that are unknown or not supported are refused by name.

Defaults are those of OpenAI's API, as is null. The ranges of sampling parameters are those of `SampleConfig`.
"""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nanogpt.config import SampleConfig
from nanogpt.errors import BadInput
from nanogpt.fields import free
from nanogpt.schema import ConfigModel, field_error, from_dict

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "truncate")
REFUSED = (  # parameters of OpenAI's API of which only null is accepted
    "audio metadata moderation prediction prompt_cache_key prompt_cache_options prompt_cache_retention "
    "reasoning_effort safety_identifier suffix user verbosity web_search_options"
)
UNSUPPORTED: Mapping[str, tuple[object, ...]] = dict.fromkeys(REFUSED.split(), ()) | {
    "best_of": (1,),  # values that mean the same as null
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
}
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(ConfigModel):
    """Parameter `stream_options`."""

    include_usage: bool = free(False, "end the stream with a chunk that has the token counts")


class GenerationRequest(ConfigModel):
    """Parameters that completions and chat have in common."""

    model: str = free("", "id in /v1/models; empty: the model that is served")
    n: int = free(1, "texts per prompt", ge=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] = free(
        [], "texts that end the answer", allowed="a text, or a list of at most 4, of 1 to 1,000 characters"
    )
    stream: bool = free(False, "send server-sent events")
    stream_options: StreamOptions | None = free(None, "with stream", allowed="{include_usage: true or false}")
    seed: int | None = free(None, "random seed; text i is sampled with (seed, i); null: a random one", ge=0, lt=2**63)
    temperature: float = free(1.0, "as in sample.py, like the next ones")
    top_p: float = free(1.0, "nucleus sampling")
    top_k: int | None = free(None, "only the k most likely tokens")
    min_p: float = free(0.0, "only tokens with this fraction of the highest probability")
    repetition_penalty: float = free(1.0, "above 1: make tokens that already occurred less likely")
    truncate: bool = free(False, "keep the end of a prompt longer than the block size")

    @model_validator(mode="before")
    @classmethod
    def _drop_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {key: value for key, value in values.items() if value is not None}
        for key, neutral in UNSUPPORTED.items():
            if key in values and key not in cls.model_fields and (value := values.pop(key)) not in neutral:
                raise field_error(key, value, "not supported by this server")
        return values

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", self.stream_options.model_dump(), "needs stream=true")
        return self

    def sample_config(self, max_tokens: int, stop: list[str], special_tokens: bool) -> SampleConfig:
        """Return the settings of `sample.py` that mean the same. Raises BadInput for values out of range."""
        settings: dict[str, Any] = {key: getattr(self, key) for key in SAMPLING}
        settings |= {"max_new_tokens": max_tokens, "task": {"stop": stop}, "special_tokens": special_tokens}
        settings["seed"] = secrets.randbits(63) if self.seed is None else self.seed
        return from_dict(SampleConfig, settings)

    def stop_texts(self) -> list[str]:
        """Return `stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = free(
        "",
        "text to continue; empty: start a new document",
        allowed="a text, a list of texts, a list of token ids, a list of such lists",
    )
    max_tokens: int = free(16, "largest number of tokens to generate", ge=0)
    echo: bool = free(False, "return the prompt before its continuation")
    logprobs: int | None = free(None, "return log-probabilities, also of this many most likely tokens", ge=0, le=5)
    special_tokens: bool = free(False, "read special tokens in a prompt as their ids; false: as plain text")

    @model_validator(mode="after")
    def _check_logprobs(self) -> "CompletionRequest":
        if self.logprobs is not None and self.stream:
            raise field_error("logprobs", self.logprobs, "not supported with stream=true")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts as a list. Raises BadInput for an empty one."""
        prompts: Any = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        prompts = [prompts] if prompts and isinstance(prompts[0], int) else prompts
        if not prompts or [] in prompts:
            raise BadInput("prompt=[]: at least one text or token id is needed")
        return prompts


class ChatMessage(ConfigModel):
    """Message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = free(..., "author")
    content: str = free(..., "text")


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)] = free(
        ..., "conversation", allowed="a list of {role: system, developer, user or assistant; content: text}"
    )
    max_tokens: int | None = free(None, "largest number of tokens to generate; null: the server's limit", ge=0)
    max_completion_tokens: int | None = free(None, "newer name of max_tokens", ge=0)

    @model_validator(mode="after")
    def _check_limits(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise field_error("max_tokens", self.max_tokens, "max_completion_tokens is given too; give one")
        return self
