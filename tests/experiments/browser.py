"""A headless Chromium, spoken to through its debugging pipe: nothing but the standard library."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60


def find() -> str | None:
    """Return the path of its program if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """An open page, what it said on its console, and what it asked the network for."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        self.buffer, self.number, self.session = b"", 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        os.write(
            self.writer, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def read(self) -> dict[str, Any]:
        """Return the next message and record it if it is an event."""
        while b"\0" not in self.buffer:
            chunk = os.read(self.reader, 1 << 20)
            assert chunk, "the browser has gone"
            self.buffer += chunk
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            self.errors.append(about["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(str(about["args"]))
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        return message

    def ask(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def scheme(self, name: str) -> None:
        """Set the colour scheme, `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])
        self.ask("new Promise(done => setTimeout(done, 300))")  # pictures are chosen anew a moment later

    def screenshot(self, path: Path) -> None:
        """Return a picture of the whole page."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def opened(program: str, file: Path, profile: Path) -> Generator[Page, None, None]:
    """Open the page of a file."""
    to_browser, writer = os.pipe()
    reader, from_browser = os.pipe()
    os.dup2(to_browser, 103)
    os.dup2(from_browser, 104)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    shell = 'exec 3<&103 4>&104 103<&- 104>&-; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, "browser", program, *options, f"--user-data-dir={profile}", "--window-size=1280,900"],
        pass_fds=(103, 104),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in (to_browser, from_browser, 103, 104):
        os.close(descriptor)
    page = Page(reader, writer)
    try:
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            page.call(f"{domain}.enable")
        page.call("Page.navigate", url=file.absolute().as_uri())
        while page.read().get("method") != "Page.loadEventFired":
            pass
        yield page
    finally:
        for descriptor in (reader, writer):
            os.close(descriptor)
        process.terminate()
        process.wait(SECONDS)
