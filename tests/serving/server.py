"""`nanogpt serve` in a process of its own, on a free port."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A server that is ready, and what it printed so far."""

    process: subprocess.Popen[str]
    url: str
    printed: str
    clients: dict[str, openai.OpenAI] = field(default_factory=dict[str, openai.OpenAI])

    def client(self, key: str = "none") -> openai.OpenAI:
        """Return OpenAI's client, which doesn't repeat requests. It is closed with the server."""
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)
        return self.clients[key]


@contextmanager
def serving(*words: str, **environment: str) -> Generator[Server, None, None]:
    """A server that is stopped at the end, by then without an error."""
    line = [sys.executable, "-m", "cli", "serve", "device=cpu", "port=0", *words]
    there = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    with tempfile.NamedTemporaryFile("w+") as errors:
        process = subprocess.Popen(line, env=there, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            printed, found = "", None
            while found is None:
                read = process.stdout.readline()
                assert read, Path(errors.name).read_text()
                printed += read
                found = re.search(r"http://\S+", read)
            server = Server(process, found[0], printed)
            try:
                yield server
            finally:
                for client in server.clients.values():
                    client.close()
            assert Path(errors.name).read_text() == ""
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()
