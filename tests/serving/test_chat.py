"""/v1/chat/completions, against transformers with the same folder."""

from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from nanogpt.config import ServeConfig
from nanogpt.errors import BadInput
from nanogpt.serving.chat_template import ChatTemplate, read_chat_template
from tests.serving.server import serving

transformers: Any = pytest.importorskip("transformers")

CHATML = """{% for message in messages %}
{% if message.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""
OTHERS = [
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}",
    "{{ strftime_now('%Y') }} {{ messages | tojson }} {{ tools is none }} {{ messages | tojson(indent=2) }}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}\n  {{ m.content }}\n{% endfor %}",
]
MESSAGES = [
    {"role": "system", "content": "größe <b> & 'c'"},
    {"role": "user", "content": " Hi 🙂 <|im_end|>"},
    {"role": "assistant", "content": "ja\n"},
    {"role": "user", "content": "und?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights and a tokenizer of bytes with a chat template, saved by transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", bos_token="<|endoftext|>", additional_special_tokens=special
    )
    tokenizer.chat_template = CHATML
    path = tmp_path_factory.mktemp("chat") / "model"
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 256}
    config = transformers.GPT2Config(vocab_size=len(tokenizer), **sizes, initializer_range=0.5)
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(path)
    return path


def test_answers_are_those_of_transformers(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    made = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, len(ids) :]
    expected = tokenizer.decode(made.tolist(), skip_special_tokens=True)
    with serving(f"init_from={folder}", "max_tokens=30") as server:
        client = server.client()
        settings: dict[str, Any] = {"model": "model", "messages": MESSAGES, "temperature": 0}
        reply = client.chat.completions.create(**settings, max_completion_tokens=20)
        assert reply.choices[0].message.content == expected and reply.choices[0].message.role == "assistant"
        assert reply.usage is not None and reply.usage.prompt_tokens == len(ids)
        assert reply.choices[0].finish_reason == ("stop" if tokenizer.eos_token_id in made else "length")
        chunks = list(client.chat.completions.create(**settings, max_tokens=20, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].object == "chat.completion.chunk"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == reply.choices[0].finish_reason
        rest = client.chat.completions.create(**settings)
        assert rest.usage is not None and rest.usage.completion_tokens == 30, "the server's limit"
        refusals: list[tuple[dict[str, Any], str]] = [
            ({"messages": []}, "messages=.*: at least one value is needed"),
            ({"messages": [{"role": "user"}]}, "messages.0.content: is missing"),
            ({"messages": [{"role": "tool", "content": "a"}]}, "messages=.*: not a choice"),
            ({"messages": [*MESSAGES, MESSAGES[0]]}, "messages: .*can't take them: system comes first"),
            ({"messages": [{"role": "user", "content": "x" * 300}]}, "the model sees 256"),
            ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens=5: max_completion_tokens is given too"),
            ({"logprobs": True}, "logprobs=True: not supported"),
            ({"response_format": {"type": "json_object"}}, "response_format=.*: not supported"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools=.*: not supported"),
        ]
        for parameters, message in refusals:
            with pytest.raises(openai.BadRequestError, match=message):
                client.chat.completions.create(**settings | parameters)
        nothing: dict[str, Any] = {
            "response_format": {"type": "text"},
            "tools": [],
            "tool_choice": "none",
            "store": False,
        }
        assert client.chat.completions.create(**settings, **nothing, max_tokens=0).choices[0].message.content == ""


@pytest.mark.parametrize("source", [CHATML, *OTHERS])
def test_templates_are_rendered_as_by_transformers(folder: Path, source: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    settings = {"chat_template": source, "add_generation_prompt": True, "tokenize": False}
    expected = tokenizer.apply_chat_template(MESSAGES, **settings)
    template = read_chat_template(ServeConfig(init_from=str(folder)))
    assert template is not None and template.source == CHATML and template.end_of_turn == ["<|im_end|>"]
    assert ChatTemplate(source, template.special_tokens).render(MESSAGES) == expected


def test_a_hostile_template_runs_nothing(tmp_path: Path) -> None:
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "x") + "') }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% if %}",
    ):
        with pytest.raises(BadInput, match="messages: the model's chat template can't take them"):
            ChatTemplate(source, {}).render([{"role": "user", "content": "a"}])
    assert not (tmp_path / "x").exists()


def test_where_a_template_is_found(folder: Path, tmp_path: Path) -> None:
    assert read_chat_template(ServeConfig()) is None
    assert read_chat_template(ServeConfig(init_from="gpt2")) is None
    assert read_chat_template(ServeConfig(init_from=str(tmp_path))) is None
    found = read_chat_template(ServeConfig(init_from=str(tmp_path), tokenizer=str(folder)))
    assert found is not None and found.source == CHATML
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template": [{"name": "other", "template": "a"}, {"name": "default", "template": "b"}]}'
    )
    found = read_chat_template(ServeConfig(init_from=str(tmp_path)))
    assert found is not None and found.source == "b" and found.end_of_turn == []
