"""The chat page in Chromium: conversations with the default model, and what is kept of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from puna.models import find_model
from support.browser import answer_with, ask, chromium, set_field, tab, wait_for_answer
from support.serving import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.oracle

TIPS = "Give me three tips for better sleep, as a list."
SECOND = "Which of them should I begin with?"
QUESTION = "Name three rivers in Europe."


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(Path(find_model("smollm2").path), engine={"max_num_seqs": 4}) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def texts(page: Page) -> list[str]:
    return [str(text) for text in page.locator(".message > .content").all_inner_texts()]


def whole(served: Served, *messages: str, **more: Any) -> str:
    """What the server answers without the page."""
    roles = ("user", "assistant")
    said = [{"role": roles[index % 2], "content": text} for index, text in enumerate(messages)]
    body = served.post("/v1/chat/completions", messages=said, **{"temperature": 0, "max_tokens": 90, **more}).json()
    return str(body["choices"][0]["message"]["content"])


def test_a_whole_conversation(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        page.get_by_text("You talk to tiny").wait_for()
        set_field(page, "temperature", "0")
        set_field(page, "max_tokens", "90")
        ask(page, TIPS)
        wait_for_answer(page)
        question, answer = texts(page)
        assert question == TIPS and answer_of(page, 0) == whole(served, TIPS) and "sleep" in answer
        stats = page.locator(".message.assistant .stats").inner_text()
        found = re.fullmatch(
            r"90 tokens · [\d.]+ tokens/s · first after [\d.]+ s · (\d+) of (\d+) prompt tokens cached", stats
        )
        assert found is not None, stats
        assert 0 == int(found[1]) < int(found[2])
        assert page.get_by_text("The limit of tokens is reached.").is_visible()

        ask(page, SECOND)
        wait_for_answer(page)
        assert answer_of(page, 1) == whole(served, TIPS, answer_of(page, 0), SECOND)
        second = page.locator(".message.assistant .stats").last.inner_text()
        cached, of = map(int, re.findall(r"(\d+) of (\d+) prompt", second)[0])
        assert 0 < cached < of

        before = texts(page)
        page.reload()
        page.locator(".message.assistant").nth(1).wait_for()
        assert texts(page) == before and page.locator("#title").inner_text() == TIPS
        assert page.locator("#sampling-temperature").input_value() == "0"
        ask(page, "Thanks.")
        wait_for_answer(page)
        assert texts(page)[:4] == before and len(texts(page)) == 6


def kept(page: Page) -> dict[str, Any]:
    """The conversation that the browser keeps, as it would be exported."""
    with page.expect_download() as download:
        page.locator("#export-all").click()
    file = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert file["format"] == "puna-conversations"
    return dict(file["conversations"][0])


def latest(page: Page) -> dict[str, Any]:
    """The latest message."""
    return dict(max(kept(page)["messages"].values(), key=lambda one: one["created"]))


def answer_of(page: Page, number: int) -> str:
    answers = [one for one in kept(page)["messages"].values() if one["role"] == "assistant"]
    return str(sorted(answers, key=lambda one: one["created"])[number]["content"])


def test_stop_ends_the_request(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        set_field(page, "seed", "3")
        ask(page, "Tell a very long story about a river.")
        page.locator(".message.assistant .content p").wait_for()
        assert served.used_blocks() > 0
        page.locator("#stop").click()
        page.get_by_text("Stopped.", exact=True).first.wait_for()
        served.wait(lambda: served.used_blocks() == 0)
        begun = answer_of(page, 0)
        assert begun and "error" not in kept(page)["messages"]

        set_field(page, "max_tokens", "8")
        page.get_by_role("button", name="Continue").click()
        wait_for_answer(page)
        assert answer_of(page, 0).startswith(begun) and len(answer_of(page, 0)) > len(begun)

        set_field(page, "max_tokens", "")
        ask(page, "Go on for ever.")  # and by the keyboard
        page.locator("#stop:not([hidden])").wait_for()
        page.keyboard.press("Escape")
        wait_for_answer(page)
        served.wait(lambda: served.used_blocks() == 0)


def test_a_reload_keeps_what_was_there_of_an_answer(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        ask(page, "Tell a very long story about a lake.")
        page.locator(".message.assistant .content p").wait_for()
        page.wait_for_timeout(1500)  # it is kept once a second
        page.reload()
        page.locator(".message.assistant .content p").first.wait_for()
        served.wait(lambda: served.used_blocks() == 0)
        assert len(texts(page)[1]) > 20 and page.locator("#send").is_visible()


def test_versions(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        set_field(page, "temperature", "0")
        set_field(page, "max_tokens", "12")
        ask(page, QUESTION)
        wait_for_answer(page)
        first = texts(page)
        set_field(page, "temperature", "1.5")
        set_field(page, "seed", "5")
        page.get_by_role("button", name="Answer again").click()
        wait_for_answer(page)
        again = texts(page)
        assert again[0] == first[0] and again[1] != first[1]
        assert answer_of(page, 1) == whole(served, QUESTION, temperature=1.5, seed=5, max_tokens=12)
        assert page.locator(".place").inner_text() == "2 / 2"
        page.get_by_role("button", name="Version before").click()
        assert texts(page) == first

        page.locator(".message.user").get_by_role("button", name="Edit").click()
        page.get_by_label("Your message").fill("Name three mountains.")
        page.keyboard.press("Enter")
        wait_for_answer(page)
        edited = texts(page)
        assert edited[0] == "Name three mountains." and len(edited) == 2 and edited[1] not in (first[1], again[1])
        page.locator(".message.user").get_by_role("button", name="Version before").click()
        assert texts(page) in (first, again)
        page.locator(".message.assistant").get_by_role("button", name="Edit").click()
        page.get_by_label("The answer").fill("The *Rhine*.")
        page.get_by_role("button", name="Save").click()
        assert texts(page)[1] == "The Rhine." and page.locator(".message.assistant .place").inner_text() == "3 / 3"
        page.reload()
        page.locator(".message.assistant em").wait_for()
        assert len(kept(page)["messages"]) == 6


def test_token_probabilities(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        for name, value in (("temperature", "0"), ("max_tokens", "10")):
            set_field(page, name, value)
        page.get_by_label("Record them while answering").check()
        ask(page, QUESTION)
        wait_for_answer(page)
        body = served.post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=10,
            logprobs=True,
            top_logprobs=5,
        ).json()
        expected = body["choices"][0]["logprobs"]["content"]
        recorded = shown_tokens(page)
        assert [token for token, _ in recorded] == [entry["token"].replace("\n", "⏎") for entry in expected]
        for (_, logprob), entry in zip(recorded, expected, strict=True):
            assert logprob == pytest.approx(entry["logprob"], abs=6e-4)
        rows = page.locator(".token-row").all_inner_texts()
        assert len(rows) == 5

        page.get_by_label("Record them while answering").uncheck()
        page.get_by_role("button", name="Answer again").click()
        wait_for_answer(page)
        assert "tokens" not in latest(page)
        computed = shown_tokens(page)  # from the text alone
        assert [token for token, _ in computed] == [token for token, _ in recorded]
        for (_, one), (_, other) in zip(computed, recorded, strict=True):
            assert one == pytest.approx(other, abs=1.1e-3)


def shown_tokens(page: Page) -> list[tuple[str, float]]:
    """Goes from token to token by the keyboard and reads what is shown of each."""
    page.get_by_role("button", name="Token probabilities").last.click()
    page.locator(".token").first.wait_for()
    found = []
    page.locator(".token").first.focus()
    for number in range(page.locator(".token").count()):
        token = page.locator(".token").nth(number)
        assert token.evaluate("node => node === document.activeElement")
        row = page.locator(".token-row.chosen")
        found.append((str(token.inner_text()), float(row.locator(".number").last.inner_text())))
        page.keyboard.press("ArrowRight")
    return found


def test_several_conversations(browser: Browser, served: Served, tmp_path: Path) -> None:
    with tab(browser, served.url) as page:
        answer_with(page, "One.")
        ask(page, "First")
        wait_for_answer(page)
        page.locator("#new").click()
        page.locator("#system").evaluate("node => document.getElementById('open-settings').click()")
        page.locator("#system").fill("Be brief.")
        bodies = answer_with(page, "Two.")
        ask(page, "Second")
        wait_for_answer(page)
        assert bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}
        titles = page.locator("#list .open")
        assert titles.all_inner_texts() == ["Second", "First"]
        titles.nth(1).click()
        page.locator(".message.user", has_text="First").wait_for()
        assert texts(page) == ["First", "One."] and page.locator("#system").input_value() == ""

        page.get_by_role("button", name="More for First").click()
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("Name", exact=True).fill("Rivers")
        page.keyboard.press("Enter")
        page.locator("#title", has_text="Rivers").wait_for()
        with page.expect_download() as download:
            page.locator("#export-all").click()
        file = tmp_path / "all.json"
        download.value.save_as(file)

        for title in ("Rivers", "Second"):
            page.get_by_role("button", name=f"More for {title}").click()
            page.locator("#list .menu:visible").get_by_role("button", name="Delete").click()
            page.locator("dialog").get_by_role("button", name="Delete").click()
            page.locator("#list .open", has_text=title).wait_for(state="detached")
        page.reload()
        page.locator(".welcome").wait_for()
        assert titles.count() == 0
        page.locator("#file").set_input_files(file)
        titles.nth(1).wait_for()
        assert sorted(titles.all_inner_texts()) == ["Rivers", "Second"]
        page.reload()
        titles.nth(1).wait_for()
        titles.filter(has_text="Rivers").click()
        page.locator(".message.assistant").wait_for()
        assert texts(page) == ["First", "One."]


def test_two_tabs_agree(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        answer_with(page, "One.")
        ask(page, "First")
        wait_for_answer(page)
        other = page.context.new_page()
        other.goto(page.url)
        other.locator(".message.assistant").wait_for()
        answer_with(page, "Two.")
        ask(page, "More")
        wait_for_answer(page)
        other.get_by_text("Two.").wait_for()
        assert texts(other) == ["First", "One.", "More", "Two."]


def test_an_adapter_can_be_chosen(browser: Browser, served: Served) -> None:
    listed = served.client.get("/v1/models").json()
    listed["data"].append({**listed["data"][0], "id": "pirate", "parent": "tiny"})
    with tab(browser, served.url, path="/version") as page:
        page.route("**/v1/models", lambda route: route.fulfill(json=listed))
        page.goto(served.url)
        bodies = answer_with(page, "Arr.")
        page.locator("#model").select_option(label="pirate (adapter)")
        ask(page, "Hello")
        wait_for_answer(page)
        assert bodies[0]["model"] == "pirate" and page.get_by_role("article", name="pirate").count() == 1
        page.unroute("**/v1/models")
        page.reload()
        page.locator("#model", has_text="pirate (not served now)").wait_for()
        page.unroute("**/v1/chat/completions")
        ask(page, "Hello")
        page.locator(".error", has_text="pirate").wait_for()


def test_a_browser_without_room_says_so(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        page.get_by_text("You talk to tiny").wait_for()
        page.evaluate(
            """() => {
              IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };
              Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };
            }"""
        )
        answer_with(page, "Not kept.")
        ask(page, "Hello")
        wait_for_answer(page)
        page.locator("#banner", has_text="This browser has no more room").wait_for()
        assert texts(page) == ["Hello", "Not kept."]


def test_a_browser_that_keeps_nothing_says_so(browser: Browser, served: Served) -> None:
    with tab(browser, served.url, path="/version") as page:
        page.add_init_script("indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); };")
        page.goto(served.url)
        page.locator("#banner", has_text="conversations are lost when it is closed").wait_for()
        answer_with(page, "One.")
        ask(page, "First")
        wait_for_answer(page)
        page.locator("#new").click()
        page.locator("#list .open", has_text="First").click()
        page.locator(".message.assistant").wait_for()
        assert texts(page) == ["First", "One."]
