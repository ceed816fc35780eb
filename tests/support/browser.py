"""Chromium, driven by Playwright: Debian's, which fetches nothing by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without windows."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path is not None, "these tests need Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Browser, url: str, *, path: str = "/", **options: Any) -> Iterator[Page]:
    """The chat page in a browser that knows nothing yet.

    At the end it has asked no other server for anything, has broken no rule of its policy, and no script has failed or
    opened a dialog.

    Args:
        browser: The browser.
        url: The server, without a slash at the end.
        path: What is opened, with what follows it.
        options: Of Playwright's `new_context`.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []
    page.on("request", lambda request: request.url.startswith((f"{url}/", "blob:")) or wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: _note(wrong, message.text))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    try:
        page.goto(f"{url}{path}")
        yield page
        assert not wrong, wrong
    finally:
        context.close()


def _note(wrong: list[str], text: str) -> None:
    # The browser itself writes there which requests failed; the page shows it, and tests look at that.
    if not text.startswith("Failed to load resource: "):
        wrong.append(text)


def answer_with(page: Page, *texts: str, reasoning: str = "", more: str = "data: [DONE]\n\n") -> list[dict[str, Any]]:
    """Has the page's questions answered by this process rather than a model.

    Args:
        page: The page.
        texts: The answer, piece by piece.
        reasoning: What comes before it.
        more: What follows the pieces.

    Returns:
        The bodies of the requests, as they come.
    """
    bodies: list[dict[str, Any]] = []
    deltas: list[dict[str, str]] = [{"reasoning_content": reasoning}] if reasoning else []
    deltas += [{"content": text} for text in texts]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "token_ids": [1]} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop", "seed": (1 << 64) - 1})
    stream = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices)

    def serve(route: Route) -> None:
        bodies.append(json.loads(route.request.post_data or "{}"))
        route.fulfill(status=200, content_type="text/event-stream", body=f": ping\n\n{stream}{more}")

    page.route("**/v1/chat/completions", serve)
    return bodies


def ask(page: Page, text: str) -> None:
    """Sends a message, by the keyboard."""
    page.locator("#prompt").fill(text)
    page.keyboard.press("Enter")


def wait_for_answer(page: Page, timeout_s: float = 60) -> None:
    """Waits until nothing is answered any more."""
    page.locator("#send:not([hidden])").wait_for(timeout=timeout_s * 1000)


def set_field(page: Page, name: str, value: str) -> None:
    """Sets a sampling value of the conversation."""
    if not page.locator("#settings").is_visible():
        page.locator("#open-settings").click()
    page.locator(f"#sampling-{name}").fill(value)
