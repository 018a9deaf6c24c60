"""Make a virtual environment where Python came without pip (Debian without python3-venv): `python3 this.py FOLDER`.

Takes pip's wheel from the package index that pip itself would use (PIP_INDEX_URL, else PyPI) and checks its sha256.
"""

import hashlib
import html.parser
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv

INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"


class Links(html.parser.HTMLParser):
    """Collects the files of an index page that are wheels of a released pip."""

    def __init__(self) -> None:
        super().__init__()
        self.wheels: list[tuple[tuple[int, ...], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") or ""
        if tag == "a" and (match := re.search(r"/pip-([\d.]+)-py3-none-any\.whl", href)):
            self.wheels.append((tuple(map(int, match[1].split("."))), href))


def main(folder: str) -> None:
    links = Links()
    with urllib.request.urlopen(INDEX, timeout=60) as page:
        links.feed(page.read().decode())
    # 25.0 is the newest line that still runs on Python 3.8 to 3.13; it updates itself where wanted.
    _, href = max(wheel for wheel in links.wheels if wheel[0] < (26,))
    url, _, digest = urllib.parse.urljoin(INDEX, href).partition("#sha256=")
    with urllib.request.urlopen(url, timeout=60) as answer:
        content = answer.read()
    if digest and hashlib.sha256(content).hexdigest() != digest:
        sys.exit(f"error: {url}: sha256 is not the index's")
    venv.create(folder, with_pip=False, symlinks=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = os.path.join(temporary, os.path.basename(urllib.parse.urlparse(url).path))
        with open(wheel, "wb") as file:
            file.write(content)
        python = os.path.join(folder, "bin", "python")
        subprocess.run([python, f"{wheel}/pip", "install", "--quiet", "--no-index", wheel], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
