"""The dashboard's pages in a real browser: looked at in both widths and colour schemes."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, installed

DESKTOP, PHONE = 1400, 412


def look_at(dashboard: str, folder: Path, *, study: int, trials: dict[int, list[str]], facts: list[str]) -> None:
    """Draw the pages of a study and of some of its trials; skipped without a browser.

    Args:
        dashboard: address of the dashboard, which ends with a slash.
        folder: where the pictures go.
        study: the study's id.
        trials: by number, what the page of a trial must say.
        facts: what the study's note must say.
    """
    executable = installed()
    if executable is None:
        pytest.skip("no browser is installed, so nobody has looked at the dashboard")
    home = f"{dashboard}studies/{study}"
    pages = {"study": (home, ["History", "average precision"]), "note": (f"{home}/note", facts)}
    pages |= {f"trial-{number}": (f"{home}/trials?numbers={number}", texts) for number, texts in trials.items()}
    with Browser(executable, folder / "profile") as browser:
        for name, (address, texts) in pages.items():
            for width in (DESKTOP, PHONE):
                dark = (width == PHONE) == (name == "study")
                browser.open(address, width=width, height=900, dark=dark, mobile=width == PHONE)
                for text in texts:
                    browser.until(f"document.body.innerText.includes({text!r})")
                assert "Objective 0" not in browser.run("document.body.innerText")
                if width == DESKTOP:
                    assert browser.run("document.documentElement.scrollWidth") <= DESKTOP, f"{name} is too wide"
                picture = folder / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                browser.picture(picture)
                print(picture)
        assert not browser.console
