"""Bad requests, limits, disconnected clients, stop signals, and bad command lines of `nanogpt serve`."""

import json
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import nanogpt
from nanogpt.config import ServeConfig
from nanogpt.errors import BadEnvironment, BadInput
from nanogpt.serving.command import serve
from tests.commands import command
from tests.serving.server import Server, serving

BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"temperature": -1}, "temperature", "temperature=-1.0: out of range; allowed: number in [0, 100]"),
    ({"temperature": "hot"}, "temperature", "temperature=hot: a number is needed; allowed: number"),
    ({"top_p": 0}, "top_p", "top_p=0.0: out of range; allowed: number in (0, 1]"),
    ({"max_tokens": 201}, "max_tokens", "max_tokens=201: allowed by this server: at most 200"),
    ({"n": 7}, "n", "n=7: asks for 7 texts; allowed by this server: at most 6"),
    ({"n": 4, "prompt": ["a", "b"]}, "n", "n=4: asks for 8 texts; allowed by this server: at most 6"),
    ({"seed": -1}, "seed", "seed=-1: out of range; allowed: integer in [0, 2^63) or null"),
    ({"temprature": 1}, "temprature", "temprature: no such key; did you mean 'temperature'?"),
    ({"best_of": 3}, "best_of", "best_of=3: not supported by this server"),
    ({"suffix": "x"}, "suffix", "suffix=x: not supported by this server"),
    ({"user": "me"}, "user", "user=me: not supported by this server"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias={'5': 1}: not supported by this server"),
    ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty=0.5: not supported by this server"),
    ({"logprobs": 1, "stream": True}, "logprobs", "logprobs=1: not supported with stream=true"),
    (
        {"logprobs": 1, "max_tokens": 65},
        "logprobs",
        "logprobs=1: prompt and max_tokens are 66 tokens; allowed: at most",
    ),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream=true"),
    ({"stop": ["a"] * 5}, "stop", "a list of at most 4, of 1 to 1,000 characters"),
    ({"stop": ""}, "stop", "a list of at most 4, of 1 to 1,000 characters"),
    ({"prompt": []}, "prompt", "prompt=[]: at least one text or token id is needed"),
    ({"prompt": [[]]}, "prompt", "prompt=[]: at least one text or token id is needed"),
    ({"prompt": [256]}, "prompt", "prompt: token ids must be in [0, 255]"),
    ({"prompt": ["a", 5]}, "prompt", "allowed: a text, a list of texts, a list of token ids, a list of such lists"),
    ({"prompt": "x" * 65}, "prompt", "65 tokens, the model sees 64; truncate=true takes the last 64"),
    ({"prompt": [5] * 65}, "prompt", "prompt=[5, …]: 65 tokens, the model sees 64"),
    ({"prompt": "\ud800"}, "prompt", r"prompt=\ud800: not valid UTF-8"),
    ({"special_tokens": True}, "special_tokens", "special_tokens=true: the model's tokenizer has no special tokens"),
]


def refuse(server: Server, content: str, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    """Return the status and the error of a completion."""
    reply = httpx.post(f"{server.url}/completions", content=content, headers={"Content-Type": kind})
    return reply.status_code, reply.json()["error"]


@pytest.mark.parametrize(("parameters", "param", "message"), BAD)
def test_bad_parameters(server: Server, parameters: dict[str, Any], param: str, message: str) -> None:
    status, error = refuse(server, json.dumps({"prompt": "a", "max_tokens": 1, **parameters}))
    assert message in error["message"], error
    assert (status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, None)


def test_parameters_that_ask_for_nothing_are_accepted(server: Server) -> None:
    nothing = {"best_of": 1, "logit_bias": {}, "presence_penalty": 0, "suffix": None, "stop": None, "user": None}
    reply = server.client().completions.create(model="", prompt="a", max_tokens=1, extra_body=nothing | {"n": None})
    assert reply.usage is not None and reply.usage.completion_tokens == 1


BODIES = [
    ('{"prompt": "a"}', "text/plain", 415, "needs the header Content-Type: application/json"),
    ('{"prompt": "' + "x" * 4000 + '"}', "application/json", 413, "larger than 4,000 bytes"),
    ("{", "application/json", 400, "the request is not valid JSON"),
    ('{"n": 1, "n": 2}', "application/json", 400, "the request is not valid JSON"),
    ("[" * 3000, "application/json", 400, "the request is not valid JSON"),
    ("[1]", "application/json; charset=utf-8", 400, "the request is not a JSON object"),
]


@pytest.mark.parametrize(("content", "kind", "status", "message"), BODIES)
def test_bad_bodies(server: Server, content: str, kind: str, status: int, message: str) -> None:
    found, error = refuse(server, content, kind)
    assert found == status and message in error["message"], error


def test_what_is_not_there(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="model=gpt-9: no such model; allowed: ") as error:
        client.completions.create(model="gpt-9", prompt="a")
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="", input="a")
    with pytest.raises(openai.BadRequestError, match="messages: this model's tokenizer has no chat template"):
        client.chat.completions.create(model="", messages=[{"role": "user", "content": "a"}])


LONG: dict[str, Any] = {"model": "", "prompt": "a", "max_tokens": 500_000}


@pytest.mark.slow
def test_slots_and_signals(run: nanogpt.Run) -> None:
    """A server with a key and one slot: who has gone frees it, and who is there at SIGTERM gets the whole text."""
    words = (f"run={run.path}", "max_running=1", "max_waiting=0", "max_tokens=500000")
    with serving(*words, NANOGPT_API_KEY="secret") as server:
        with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
            server.client("other").models.list()
        client = server.client("secret")
        stream = client.completions.create(**LONG, stream=True)
        next(stream)
        with pytest.raises(openai.RateLimitError, match="too many requests wait"):
            client.completions.create(model="", prompt="a")
        stream.close()
        wait_for_slot(client)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1).completions.create(**LONG)
        wait_for_slot(client)
        stream = client.completions.create(model="", prompt="a", max_tokens=100, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
        assert server.process.wait(60) == -signal.SIGTERM
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


@pytest.mark.slow
def test_requests_that_take_too_long_end_with_an_error(run: nanogpt.Run) -> None:
    with serving(f"run={run.path}", "max_running=1", "max_tokens=500000", "stop_timeout_s=0") as server:
        stream = server.client().completions.create(**LONG, stream=True)
        next(stream)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(server.client().completions.create, **LONG)
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="the server is stopping"):
                list(stream)
            with pytest.raises(openai.InternalServerError, match="the server is stopping"):
                waiting.result()
        assert server.process.wait(60) == -signal.SIGTERM


def wait_for_slot(client: openai.OpenAI) -> None:
    """Return when a request is answered. The one before would take minutes."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            client.completions.create(model="", prompt="a", max_tokens=1)
            return
        except openai.RateLimitError:
            time.sleep(0.05)
    pytest.fail("the slot is still taken")


def test_bad_command_lines(run: nanogpt.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = command("-m", "cli", "serve", f"run={run.path}", f"port={port}", folder=tmp_path)
    assert done.returncode == 5 and done.stdout == ""
    assert done.stderr == f"error: port={port}: Address already in use; another one: port=0 takes any free one\n"
    shutil.copytree(run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("step-*"))
    done = command("-m", "cli", "serve", f"run={tmp_path}/copy", "port=0", folder=tmp_path)
    assert done.returncode == 4 and done.stderr.count("\n") == 1, done.stderr
    with pytest.raises(BadInput, match=r"host=192.0.2.1: not an address of this machine"):
        serve(ServeConfig(host="192.0.2.1"))
    with pytest.raises(BadInput, match=r"host=no such: not a host's name or address"):
        serve(ServeConfig(host="no such"))
    monkeypatch.setattr("nanogpt.serving.command.find_spec", {}.get)
    with pytest.raises(BadEnvironment, match=r"fastapi is not installed: pip install 'fastapi>=0.115' 'uvicorn>=0.30'"):
        serve(ServeConfig())


@pytest.mark.parametrize(
    ("host", "key", "warned"), [("0.0.0.0", "", 1), ("0.0.0.0", "secret", 0), ("localhost", "", 0)]
)
def test_an_open_server_warns(
    host: str,
    key: str,
    warned: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NANOGPT_API_KEY", key)
    with pytest.raises(BadInput, match="not a run directory"):
        serve(ServeConfig(host=host, port=0, run=str(tmp_path)))
    assert capsys.readouterr().out.count("warning: host=0.0.0.0: everyone who reaches this port can use the") == warned
