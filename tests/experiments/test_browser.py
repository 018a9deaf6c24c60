"""The report's page in a real browser."""

from pathlib import Path

import pytest

from tests.experiments import browser
from tests.experiments.fake_runs import write_run
from tests.experiments.page import EVIL, reported


@pytest.mark.slow
def test_a_browser_shows_it_and_sorts(tmp_path: Path) -> None:
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium on this machine")
    for lr, loss in ((1e-3, 2.5), (3e-3, 2.0), (1e-2, 10.5)):
        write_run(tmp_path, [5.0, loss], name=f"r{lr}", **{"optimizer.lr": lr})
    write_run(tmp_path, [5.0], name="bad", state="failed", why=EVIL, **{"optimizer.lr": 1.0, "data.source": EVIL})
    reported(tmp_path)
    with browser.opened(program, tmp_path / "report.html", tmp_path / "profile") as page:
        rows = "Array.from(document.querySelector('table').tBodies[0].rows, row => row.cells[{}].textContent)"
        column = "Array.from(document.querySelectorAll('table th')).findIndex(th => th.textContent.trim() === '{}')"
        at = page.ask(column.format("final val"))
        click = f"document.querySelectorAll('table th')[{at}].querySelector('button').click()"
        assert [text.strip() for text in page.ask(rows.format(at))][:3] == ["2.0000", "2.5000", "10.5000"]
        page.ask(click)
        page.ask(click)
        assert page.ask(rows.format(at))[0].strip() == "10.5000"
        assert page.ask(f"document.querySelectorAll('table th')[{at}].getAttribute('aria-sort')") == "descending"
        assert page.ask("Array.from(document.images).every(image => image.complete && image.naturalWidth > 500)")
        background = "getComputedStyle(document.body).backgroundColor"
        seen = []
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            seen.append((page.ask(background), page.ask("document.images[0].currentSrc")))
            page.screenshot(tmp_path / f"{scheme}.png")
        assert seen[0][0] == "rgb(255, 255, 255)" and seen[1][0] == "rgb(20, 23, 28)" and seen[0][1] != seen[1][1]
        assert page.errors == []
        assert all(url.startswith(("file:", "data:")) for url in page.requests)
