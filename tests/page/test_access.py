"""The chat page in Chromium: by keyboard alone, on a phone, in the dark, with keys, for assistive technology."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.browser import answer_with, ask, chromium, set_field, tab, wait_for_answer
from support.serving import Served, serving
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.oracle

PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740}, "device_scale_factor": 2,
    "is_mobile": True, "has_touch": True,
}
RICH = (
    "# Rivers\n\nThe *Rhine* has **1,230 km**, see [a map](https://example.org/a/very/long/path/without/any/break/at/all).\n\n"
    "- one `item`\n- two\n\n> a quote\n\n| River | Length | Countries | Mouth | Source |\n|---|--:|---|---|---|\n"
    "| Rhine | 1230 | Switzerland, Liechtenstein, Austria | North Sea | Tomasee |\n\n"
    "```python\ndef f(x):  # a comment that is longer than a phone is wide, by far, so that it must be moved\n"
    '    return x + 1, "text", None\n```\n\n```diff\n+ new\n- old\n```\n\n' + "a" * 200
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def served(path: Path) -> Iterator[Served]:
    with serving(path) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def with_answer(page: Page) -> None:
    """A conversation that shows all there is."""
    answer_with(page, RICH, reasoning="First *this*.\n\nThen that.")
    ask(page, "Tell me about rivers.")
    wait_for_answer(page)
    page.unroute("**/v1/chat/completions")


def tab_to(page: Page, name: str, *, backwards: bool = False) -> None:
    """Goes on by Tab until something of this name has the focus, which must then be seen."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        found = page.evaluate(
            """() => {
              const node = document.activeElement;
              const label = node.id ? document.querySelector(`label[for="${node.id}"]`) : node.closest("label");
              return node.getAttribute("aria-label") ?? label?.textContent.trim() ?? node.textContent.trim();
            }"""
        )
        if found == name:
            style = "node => [getComputedStyle(node).outlineStyle, getComputedStyle(node.parentNode).outlineStyle]"
            assert set(page.locator(":focus").evaluate(style)) != {"none"}
            return
    raise AssertionError(f"{name} cannot be reached by Tab")


def test_by_keyboard_alone(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        page.get_by_text("You talk to tiny").wait_for()
        assert page.evaluate("document.activeElement.id") == "prompt"
        tab_to(page, "Settings of this conversation", backwards=True)
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "close-settings"
        tab_to(page, "Max tokens")
        page.keyboard.type("5")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "open-settings"
        tab_to(page, "Message")
        page.keyboard.type("One line")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("and another")
        page.keyboard.press("Enter")
        wait_for_answer(page)
        assert page.locator(".message.user .content").inner_text() == "One line\nand another"
        assert "5 tokens" in page.locator(".message.assistant .stats").inner_text()
        assert page.evaluate("document.activeElement.id") == "prompt"

        tab_to(page, "Token probabilities", backwards=True)
        page.keyboard.press("Enter")
        page.locator(".token").first.wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("End")
        last = page.locator(".token").last
        assert last.get_attribute("aria-selected") == "true" and last.get_attribute("tabindex") == "0"
        assert page.locator(".token[tabindex='0']").count() == 1

        tab_to(page, "Answer again", backwards=True)
        page.keyboard.press("Space")
        page.locator(".place", has_text="2 / 2").wait_for()
        wait_for_answer(page)
        page.locator("#prompt").focus()
        tab_to(page, "Version before", backwards=True)
        page.keyboard.press("Enter")
        assert page.locator(".place").inner_text() == "1 / 2"
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Version before"
        tab_to(page, "Edit", backwards=True)
        page.keyboard.press("Enter")
        page.keyboard.type(" more")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Edit"

        tab_to(page, "More for One line and another", backwards=True)
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.textContent") == "Rename"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "More for One line and another"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.locator("dialog").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        assert page.locator("#list .open").count() == 1


def test_what_is_said_while_an_answer_comes(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        page.evaluate(
            """() => {
              window.said = [];
              new MutationObserver((changes) => changes.forEach((change) =>
                change.addedNodes.forEach((node) => window.said.push(node.textContent))))
                .observe(document.getElementById("said"), { childList: true });
            }"""
        )
        answer_with(page, "One sen", "tence. And ", "ano", "ther")
        ask(page, "Hello")
        wait_for_answer(page)
        page.wait_for_function("window.said.length > 3")
        said = page.evaluate("window.said.map((text) => text.trim())")
        assert said == ["Answering.", "One sentence.", "And another", "The answer is complete."]


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_axe_finds_nothing(browser: Browser, served: Served, colors: str, size: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    def check(where: str) -> None:
        page.wait_for_timeout(100)
        results = Axe().run(page, options={"resultTypes": ["violations"]})
        assert results.response["passes"] and not results.response["violations"], (where, results.generate_report())

    options: dict[str, Any] = PHONE if size == "phone" else {}
    with tab(browser, served.url, color_scheme=colors, **options) as page:
        page.get_by_text("You talk to tiny").wait_for()
        check("empty")
        with_answer(page)
        page.locator(".reasoning summary").click()
        page.locator(".message.assistant").get_by_role("button", name="Token probabilities").click()
        page.locator(".token").nth(5).click()
        check("answer")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.get_by_role("button", name="Answer again").click()
        page.locator(".error:visible").wait_for()
        check("error")
        page.locator(".message.user").get_by_role("button", name="Edit").click()
        check("editing")
        set_field(page, "temperature", "9")
        check("settings")
        page.locator("#close-settings").click()
        if size == "phone":
            page.locator("#open-conversations").click()
        page.get_by_role("button", name="More for Tell me about rivers.").click()
        check("conversations")
        page.locator("#list .menu").get_by_role("button", name="Rename").click()
        check("dialog")


def test_a_phone_is_wide_enough(browser: Browser, served: Served) -> None:
    def check() -> None:
        overflow = "document.scrollingElement.scrollWidth - window.innerWidth"
        assert page.evaluate(overflow) <= 0
        wide = """() => [...document.querySelectorAll("#thread, #composer, header, #settings, #conversations")]
          .filter((node) => node.scrollWidth > node.clientWidth + 1).map((node) => node.id || node.tagName)"""
        assert page.evaluate(wide) == []

    with tab(browser, served.url, **PHONE) as page:
        page.get_by_text("You talk to tiny").wait_for()
        check()
        with_answer(page)
        check()
        page.get_by_role("button", name="Token probabilities").click()
        page.locator(".token").first.tap()
        check()
        page.locator("#open-settings").tap()
        check()
        assert page.locator("#middle").evaluate("node => node.inert")
        page.locator("#close-settings").tap()
        assert not page.locator("#conversations").is_visible()
        page.locator("#open-conversations").tap()
        check()
        page.locator("#list .open").tap()
        assert not page.locator("#conversations").is_visible()
        small = """() => [...document.querySelectorAll("button, select")].filter((node) => node.checkVisibility())
          .filter((node) => node.getBoundingClientRect().height < 24).map((node) => node.outerHTML)"""
        assert page.evaluate(small) == []
        page.locator("#prompt").fill("line\n" * 60)
        assert page.locator("#composer").bounding_box()["height"] < 740 * 0.6  # type: ignore[index]
        check()


def test_dark_light_and_back(browser: Browser, served: Served) -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with tab(browser, served.url, color_scheme="light") as page:
        light = paper()
        page.emulate_media(color_scheme="dark")
        dark = paper()
        assert light != dark and page.locator("#theme").inner_text() == "Theme: system"
        page.locator("#theme").click()
        assert paper() == light
        page.reload()
        assert paper() == light and page.locator("#theme").inner_text() == "Theme: light"
        page.locator("#theme").click()
        page.emulate_media(color_scheme="light")
        assert paper() == dark
        page.locator("#theme").click()
        assert paper() == light and page.locator("#theme").inner_text() == "Theme: system"


def test_nothing_moves_for_those_who_ask(browser: Browser, served: Served) -> None:
    with tab(browser, served.url, reduced_motion="reduce") as page:
        page.route("**/v1/chat/completions", lambda route: None)  # an answer that never comes
        ask(page, "Hello")
        page.locator(".message.running").wait_for()
        assert page.evaluate("document.getAnimations().length") == 0
        page.locator("#stop").click()
        wait_for_answer(page)


def test_a_key_is_asked_for(browser: Browser, path: Path) -> None:
    with serving(path, api_keys={"one": "the-only-key"}) as server, tab(browser, server.url) as page:
        page.locator("dialog").get_by_text("This server asks for a key").wait_for()
        page.keyboard.type("a-wrong-key")
        page.keyboard.press("Enter")
        page.locator("dialog").get_by_text("key").first.wait_for()
        page.wait_for_timeout(300)
        page.get_by_label("Key", exact=True).fill("the-only-key")
        page.keyboard.press("Enter")
        page.get_by_text("You talk to tiny").wait_for()
        set_field(page, "max_tokens", "3")
        ask(page, "Hello")
        wait_for_answer(page)
        assert "3 tokens" in page.locator(".stats").last.inner_text()
        page.reload()  # kept in this tab
        page.locator(".message.assistant").wait_for()
        assert not page.locator("dialog").count()
        assert page.evaluate("Object.values(localStorage).join()").find("the-only-key") < 0
        other = page.context.new_page()  # and in no other
        other.goto(server.url)
        other.locator("dialog").wait_for()
        other.keyboard.press("Escape")
        other.get_by_text("Without a key the server answers nothing.").wait_for()


def test_values_that_cannot_be_are_said_before_anything_is_sent(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        page.get_by_text("You talk to tiny").wait_for()
        set_field(page, "max_tokens", "0")
        bodies = answer_with(page, "No.")
        ask(page, "Hello")
        assert page.evaluate("document.activeElement.id") == "sampling-max_tokens"
        message = page.locator("#sampling-max_tokens").evaluate("node => node.validationMessage")
        assert message == "From 1, please." and page.locator("#prompt").input_value() == "Hello" and not bodies
        values = {"max_tokens": "7", "temperature": "0.5", "top_p": ".9", "top_k": "40", "min_p": "0.05"}
        values |= {"repetition_penalty": "1.1", "seed": str((1 << 64) - 1)}
        for name, value in values.items():
            set_field(page, name, value)
        page.locator("#prompt").press("Enter")
        wait_for_answer(page)
        assert {name: bodies[0][name] for name in values} == {
            name: int(value) if value.isdigit() else float(value) for name, value in values.items()
        }
        page.locator("#reset").click()
        ask(page, "Again")
        wait_for_answer(page)
        assert not set(values) & set(bodies[1])


def test_defaults_are_the_servers(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        page.get_by_text("You talk to tiny").wait_for()
        defaults = served.client.get("/page/settings").json()["defaults"]
        for name, value in defaults.items():
            shown = page.locator(f"#sampling-{name}").get_attribute("placeholder")
            assert shown == (
                {"top_k": "all", "max_tokens": "what the context holds", "seed": "drawn anew"}[name]
                if value in (None, -1)
                else f"{value:g}"
            )


def test_the_page_waits_for_the_model(browser: Browser, path: Path) -> None:
    import threading

    from puna import AsyncLLM

    may_load = threading.Event()

    def load() -> AsyncLLM:
        assert may_load.wait(30)
        return AsyncLLM(path)

    with serving(load, is_awaited=False) as server, tab(browser, server.url) as page:
        page.get_by_text("The model is loading").wait_for()
        may_load.set()
        page.get_by_text("You talk to tiny").wait_for()
        assert not page.locator("#banner").is_visible()
