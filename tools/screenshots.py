"""Takes the pictures of the chat page that docs/page.md shows: the default model, a fixed seed.

    PYTHONPATH=tests python tools/screenshots.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from puna.models import find_model
from support.browser import ask, chromium, set_field, tab, wait_for_answer
from support.serving import serving

TIPS = "Give me three tips for better sleep, as a list."
CODE = "Show a loop in Python, with comments."
SKY = "Why is the sky blue? One sentence, please."
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}


def main(directory: Path) -> None:
    """Writes the pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    load = Path(find_model("smollm2").path)
    with serving(load, model_names=("smollm2",)) as server, chromium() as browser:
        with tab(browser, server.url, color_scheme="light", viewport={"width": 1200, "height": 760}) as page:
            converse(page, SKY, 60)
            page.locator("#new").click()
            converse(page, CODE, 160)
            page.locator("#new").click()
            converse(page, TIPS, 120)
            converse(page, "Which of them should I begin with?", 120)
            shoot(page, directory / "light.png")
        with tab(browser, server.url, color_scheme="dark", viewport={"width": 1200, "height": 860}) as page:
            converse(page, SKY, 60)
            page.get_by_role("button", name="Token probabilities").click()
            page.locator(".token").nth(4).click()
            page.locator("#open-settings").click()
            shoot(page, directory / "dark.png")
        with tab(browser, server.url, color_scheme="light", **PHONE) as page:
            converse(page, TIPS, 120)
            shoot(page, directory / "phone.png")


def converse(page: Any, question: str, max_tokens: int) -> None:
    set_field(page, "temperature", "0")
    set_field(page, "max_tokens", str(max_tokens))
    page.locator("#close-settings").click()
    ask(page, question)
    wait_for_answer(page)


def shoot(page: Any, path: Path) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    page.screenshot(path=path)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
