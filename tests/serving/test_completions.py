"""/v1/completions through OpenAI's client, against `sample.py` and the model's logits."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import nanogpt
from nanogpt.errors import BadInput
from nanogpt.tokenizer import decode
from tests.commands import command
from tests.serving.server import Server

SEEDED = {"max_tokens": 60, "temperature": 0.9, "seed": 5}


def complete(server: Server, prompt: Any, **settings: Any) -> Any:
    """Return the reply."""
    return server.client().completions.create(model="", prompt=prompt, **settings)


def sampled(run: nanogpt.Run, folder: Path, *words: str) -> list[str]:
    """Return the texts of `sample.py`."""
    line = [f"run={run.path}", "device=cpu", f"out={folder}/out.jsonl", *words]
    done = command("sample.py", *line, folder=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(row)["text"] for row in (folder / "out.jsonl").read_text().splitlines()]


def test_texts_are_those_of_the_command(server: Server, run: nanogpt.Run, tmp_path: Path) -> None:
    """Several prompts with several texts each, in its order and with its random numbers."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "größe 🙂"}\n{"prompt": "al"}\n')
    words = ["max_new_tokens=60", "temperature=0.9", "top_p=0.95", "top_k=50", "seed=5", "num_samples=2"]
    expected = sampled(run, tmp_path, f"prompts={tmp_path}/prompts.jsonl", *words)
    settings = {**SEEDED, "top_p": 0.95, "n": 2, "extra_body": {"top_k": 50}}
    reply = complete(server, ["größe 🙂", "al"], **settings)
    assert [choice.text for choice in reply.choices] == expected and len(set(expected)) == 4
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.object == "text_completion" and reply.model == run.path.name
    assert {choice.finish_reason for choice in reply.choices} == {"length"}
    prompts = len("größe 🙂".encode()) + 2
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompts, 240)
    assert reply.usage.total_tokens == prompts + 240


def test_defaults_are_those_of_the_api(server: Server, run: nanogpt.Run) -> None:
    """16 tokens at temperature 1, a new document without a prompt, other random numbers each time."""
    reply = complete(server, None, seed=3)
    assert reply.choices[0].text == run.sample("", max_new_tokens=16, temperature=1.0, seed=3)[0]
    texts = {complete(server, "a", max_tokens=40, temperature=1.5).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_a_stream_is_the_same_text(server: Server) -> None:
    """No character of several bytes is torn."""
    whole = complete(server, ["größe ", "al"], n=2, **SEEDED)
    chunks = list(complete(server, ["größe ", "al"], n=2, stream=True, **SEEDED))
    for expected in whole.choices:
        pieces = [choice for chunk in chunks for choice in chunk.choices if choice.index == expected.index]
        assert "".join(piece.text for piece in pieces) == expected.text
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
        assert len(pieces) > 20 and any(piece.text in "🙂—✓öß" for piece in pieces[:-1])
    assert "🙂" in "".join(choice.text for choice in whole.choices)
    assert all(chunk.usage is None for chunk in chunks) and len({chunk.id for chunk in chunks}) == 1
    *chunks, last = complete(server, "al", stream=True, stream_options={"include_usage": True}, **SEEDED)
    assert last.choices == [] and last.usage.completion_tokens == 60 and chunks[0].usage is None


def test_stop_texts_end_and_are_left_out(server: Server) -> None:
    settings = {**SEEDED, "temperature": 0.3}
    text = complete(server, "größe", **settings).choices[0].text
    stop = text[20:23]
    expected = text[: text.index(stop)]
    reply = complete(server, "größe", stop=["not in it", stop], **settings)
    assert reply.choices[0].text == expected and reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len((expected + stop).encode())
    chunks = list(complete(server, "größe", stop=stop, stream=True, **settings))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_temperature_0_takes_the_likeliest(server: Server, run: nanogpt.Run) -> None:
    ids = list(b"alpha")
    for _ in range(12):
        ids.append(int(run.logits(ids)[-1].argmax()))
    reply = complete(server, "alpha", temperature=0, max_tokens=12, echo=True)
    assert reply.choices[0].text == decode(run.tokenizer, ids)
    assert complete(server, list(b"alpha"), temperature=0, max_tokens=12, echo=True).choices == reply.choices


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_are_those_of_the_logits(server: Server, run: nanogpt.Run, echo: bool) -> None:
    reply = complete(server, ["größe 🙂", "al"], **{**SEEDED, "max_tokens": 30}, logprobs=3, echo=echo)
    for choice, prompt in zip(reply.choices, [b"gr\xc3\xb6\xc3\x9fe \xf0\x9f\x99\x82", b"al"], strict=True):
        found = choice.logprobs
        shown = [to_byte(token) for token in found.tokens]
        assert bytes(shown).decode("utf-8", "replace") == choice.text
        assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
        ascii = [(i, chr(token)) for i, token in zip(found.text_offset, shown, strict=True) if token < 0x80]
        assert len(ascii) > 3 and all(choice.text[i] in (char, "\ufffd") for i, char in ascii)
        ids = shown if echo else [*prompt, *shown]
        table = run.logits(ids).log_softmax(1)
        if echo:
            assert found.token_logprobs.pop(0) is None and found.top_logprobs.pop(0) is None
        start = len(ids) - len(found.token_logprobs)
        for position, logprob, top in zip(
            range(start, len(ids)), found.token_logprobs, found.top_logprobs, strict=True
        ):
            row = table[position - 1]
            assert logprob == pytest.approx(float(row[ids[position]]), abs=1e-4)
            likeliest = {*row.topk(3).indices.tolist(), ids[position]}
            assert {to_byte(token): value for token, value in top.items()} == pytest.approx(
                {token: float(row[token]) for token in likeliest}, abs=1e-4
            )


def to_byte(token: str) -> int:
    """Return the id of a byte that is shown as a character or as `bytes:\\xf0`."""
    return int(token.removeprefix("bytes:\\x"), 16) if token.startswith("bytes:") else ord(token)


def test_an_echo_without_new_tokens_scores_the_prompt(server: Server, run: nanogpt.Run) -> None:
    prompt = list("alpha — ✓".encode())
    reply = complete(server, prompt, max_tokens=0, echo=True, logprobs=1)
    table = run.logits(prompt).log_softmax(1)
    expected = [float(table[i, token]) for i, token in enumerate(prompt[1:])]
    assert reply.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert reply.choices[0].text == "alpha — ✓" and reply.usage.completion_tokens == 0


def test_texts_longer_than_the_model_sees(server: Server, run: nanogpt.Run) -> None:
    prompt = "größe 🙂 1, " * 5
    with pytest.raises(BadInput, match="truncate=true"):
        run.sample(prompt)
    expected = run.sample(prompt, max_new_tokens=30, temperature=0.9, seed=5, truncate=True)[0]
    reply = complete(server, prompt, extra_body={"truncate": True}, **{**SEEDED, "max_tokens": 30})
    assert reply.choices[0].text == expected


def test_clients_at_once_get_what_they_get_alone(server: Server) -> None:
    prompts = ["größe", "alpha", "🙂", "—", "✓ 1", "a"]
    alone = [complete(server, prompt, **SEEDED).choices[0].text for prompt in prompts]

    def stream(prompt: str) -> str:
        return "".join(chunk.choices[0].text for chunk in complete(server, prompt, stream=True, **SEEDED))

    with ThreadPoolExecutor(len(prompts)) as threads:
        assert list(threads.map(stream, prompts)) == alone


def test_the_model_is_listed(server: Server, run: nanogpt.Run) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [run.path.name]
    assert client.models.retrieve(run.path.name).owned_by == "nanogpt-lab"
    assert client.completions.create(model=run.path.name, prompt="a", max_tokens=1).model == run.path.name
