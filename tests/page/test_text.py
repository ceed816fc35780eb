"""The chat page in Chromium: markdown, and text that means harm."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.browser import answer_with, ask, chromium, tab, wait_for_answer
from support.serving import Served, serving
from support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.oracle

SHOW = """async (source) => {
  const { showMarkdown } = await import("/page/markdown.js");
  const node = document.createElement("div");
  showMarkdown(node, source);
  for (const one of node.querySelectorAll("button, .code-bar, [tabindex]")) {
    if (one.matches("[tabindex]")) for (const name of ["tabindex", "role", "aria-label"]) one.removeAttribute(name);
    else one.remove();
  }
  return node.innerHTML;
}"""
A = 'target="_blank" rel="noopener noreferrer nofollow"'

CASES = [
    ("plain", "<p>plain</p>"),
    ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    ("# A\n### B ##\n####### C", '<h3 class="level-1">A</h3><h5 class="level-3">B</h5><p>####### C</p>'),
    ("*a* **b** ***c*** _d_ __e__ ~~f~~", "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> "
     "<strong>e</strong> <s>f</s></p>"),
    ("snake_case_name 2*3*4 * a *", "<p>snake_case_name 2<em>3</em>4 * a *</p>"),
    ("**a *b* c** *d **e*", "<p><strong>a <em>b</em> c</strong> *d *<em>e</em></p>"),
    ("`a*b*` ``c ` d`` `open", "<p><code>a*b*</code> <code>c ` d</code> `open</p>"),
    (r"\*a\* \\ \x", r"<p>*a* \ \x</p>"),
    ("a &amp; b &lt; c &copy; &#39;", "<p>a &amp; b &lt; c &amp;copy; '</p>"),
    ("a<br>b<i>c</i>", "<p>a<br>b&lt;i&gt;c&lt;/i&gt;</p>"),
    ("---", "<hr>"),
    ("> a\n> b\n\n> > c", "<blockquote><p>a<br>b</p></blockquote>"
     "<blockquote><blockquote><p>c</p></blockquote></blockquote>"),
    ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    ("3. a\n4. b\n\n   more", '<ol start="3"><li><p>a</p></li><li><p>b</p><p>more</p></li></ol>'),
    ("- [ ] a\n- [x] b", "<ul><li>☐ a</li><li>☑ b</li></ul>"),
    ("text\n1. a\n2. b", "<p>text</p><ol><li>a</li><li>b</li></ol>"),
    ("1. a\n   ```\n   x\n   ```\n2. b",
     '<ol><li>a<div class="code"><pre><code>x</code></pre></div></li><li>b</li></ol>'),
    ("```\na\n  <b>\n```\nc", '<div class="code"><pre><code>a\n  &lt;b&gt;</code></pre></div><p>c</p>'),
    ("````md\n```\n````", '<div class="code"><pre><code>```</code></pre></div>'),
    ("```py\n# c\nx = f('s', 1)  # d", '<div class="code"><pre><code><span class="code-comment"># c</span>\nx = '
     '<span class="code-name">f</span>(<span class="code-string">\'s\'</span>, <span class="code-number">1</span>)  '
     '<span class="code-comment"># d</span></code></pre></div>'),
    ("```c\n/* a\nb */ int x;", '<div class="code"><pre><code><span class="code-comment">/* a\nb */</span> '
     '<span class="code-keyword">int</span> x;</code></pre></div>'),
    ("| a | b |\n|:--|--:|\n| 1 | `x\\|y` |\n| 2 |",
     '<div class="table"><table><thead><tr><th class="to-start" scope="col">a'
     '</th><th class="to-end" scope="col">b</th></tr></thead><tbody><tr><td class="to-start">1</td><td class="to-end">'
     '<code>x|y</code></td></tr><tr><td class="to-start">2</td><td class="to-end"></td></tr></tbody></table></div>'),
    ("[a **b**](https://example.org/x_(y) \"t\")!",
     f'<p><a href="https://example.org/x_(y)" {A}>a <strong>b</strong></a>!</p>'),
    ("see https://example.org/a_b_c.", f'<p>see <a href="https://example.org/a_b_c" {A}>https://example.org/a_b_c</a>.</p>'),
    ("<https://example.org> ![alt](https://example.org/i.png)", f'<p><a href="https://example.org/" {A}>'
     f'https://example.org</a> <a href="https://example.org/i.png" {A}>alt</a></p>'),
    ("[a](/v1/models) [b] [c](x", "<p>[a](/v1/models) [b] [c](x</p>"),
    ("[a [b](https://example.org/) c](https://example.org/)",
     f'<p>[a <a href="https://example.org/" {A}>b</a> c](<a href="https://example.org/" {A}>https://example.org/</a>)</p>'),
]  # fmt: skip

HOSTILE = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    "<svg onload=window.hurt=1>",
    "<iframe srcdoc='<script>parent.hurt = 1</script>'></iframe>",
    "</p></article></main><script>window.hurt = 1</script>",
    "[a](javascript:window.hurt=1)",
    "[a](JaVaScRiPt:window.hurt=1) [b](java\tscript:window.hurt=1) [c](&#106;avascript:window.hurt=1)",
    "[a](data:text/html,<script>window.hurt=1</script>) [b](vbscript:x) [c](file:///etc/passwd)",
    "[a](https://example.org/\"onmouseover=\"window.hurt=1)",
    "<javascript:window.hurt=1> <https://example.org/'onclick='window.hurt=1'>",
    "![a](https://example.org/leak.png) ![b](javascript:window.hurt=1)",
    "```<script>window.hurt=1</script>\n</code></pre><script>window.hurt=1</script>\n```",
    "```\"><img/src=x/onerror=window.hurt=1>\nx\n```",
    "```__proto__\nx\n```\n```constructor\ny\n```",
    "| <img src=x onerror=window.hurt=1> |\n|---|\n| <script>window.hurt=1</script> |",
    "<style>body{display:none}</style><base href='https://example.org/'><meta http-equiv=refresh content=0>",
    "<form action=https://example.org><input name=key></form><link rel=stylesheet href=https://example.org/x.css>",
]

ENDLESS = [
    "*" * 60_000, "*a " * 30_000, "**a*" * 20_000, "_" * 999 + "a" + "_" * 999, "[" * 60_000, "[]" * 30_000,
    "[a](" * 20_000, "[" * 9_000 + "a" + "](https://example.org/)" * 3_000, "`" * 60_000,
    "".join("`" * n + " " for n in range(400)), "> " * 30_000, "- " * 30_000, "1. " * 20_000, "# " + " " * 60_000 + "x",
    "|" * 60_000 + "\n" + "|-" * 30_000, "a|b\n-" + " " * 60_000 + "x", "```" + " " * 60_000 + "`",
    "<" * 60_000, "&" * 60_000, "https://" + "." * 60_000, "https://a.b/" + ".)" * 30_000, "~~" * 30_000,
    "\n" * 60_000, "- a\n" * 15_000, "-" * 60_000 + "x", "\\" * 60_000, "!" * 60_000, "![" * 30_000,
    "```py\n" + '"' * 60_000, "```c\n" + "/*" * 30_000, "```html\n" + "<" * 60_000, "```js\n" + "`${" * 20_000,
    "".join("  " * n + "- a\n" for n in range(300)), "\"'" * 30_000, "| a |\n|---|\n" + "| `\n" * 10_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(write_tiny_model(tmp_path_factory.mktemp("tiny"))) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def test_markdown(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        for source, expected in CASES:
            assert page.evaluate(SHOW, source) == expected, source


def test_text_inside_blocks_is_as_markdown_it_has_it(browser: Browser, served: Served) -> None:
    from markdown_it import MarkdownIt

    pieces = ["a", "b ", "*", "**", "***", "_", "__", " ", "`", "\\", "[", "]", ".", "c", "<", "&amp;", "\u00e9"]
    rng = random.Random(1)
    texts = ["x" + "".join(rng.choices(pieces, k=rng.randint(2, 16))) + "y" for _ in range(3000)]
    texts = [text for text in texts if not re.search(r"([*_])\1{6}", text)]  # longer runs are text here
    script = """async (sources) => {
      const { inline } = await import("/page/markdown.js");
      return sources.map((source) => {
        const node = document.createElement("p");
        node.append(...inline(source));
        return node.innerHTML;
      });
    }"""
    reader = MarkdownIt("commonmark", {"html": False})
    with tab(browser, served.url) as page:
        for text, found in zip(texts, page.evaluate(script, texts), strict=True):
            assert found == reader.renderInline(text), text


def test_no_text_fails(browser: Browser, served: Served) -> None:
    pieces = ["a", "\n", "\n\n", "  ", "- ", "1. ", "> ", "# ", "```", "~~~", "|", "|--|", "*", "_", "~~", "`", "["]
    pieces += ["](", ")", "https://a.b/", "<", ">", "&lt;", "\\", "!", "---", ":", "\t", "[x] ", "py"]
    pieces += ["\U0001f600", "\r\n", "\0"]
    rng = random.Random(2)
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 40))) for _ in range(4000)]
    script = """async (sources) => {
      const { showMarkdown } = await import("/page/markdown.js");
      return sources.filter((source) => {
        const node = document.createElement("div");
        try {
          showMarkdown(node, source);
        } catch {
          return true;
        }
        return /a/.test(source) && !/[|`~]/.test(source) && !/a/.test(node.textContent);
      });
    }"""
    with tab(browser, served.url) as page:
        assert page.evaluate(script, texts) == []


def test_a_text_that_grows_looks_as_if_it_had_come_at_once(browser: Browser, served: Served) -> None:
    source = "\n\n".join(source for source, _ in CASES)
    script = """async (source) => {
      const { showMarkdown } = await import("/page/markdown.js");
      const [whole, grown] = [document.createElement("div"), document.createElement("div")];
      showMarkdown(whole, source);
      let kept = 0;
      for (let end = 1; end <= source.length; end += 1) {
        const first = grown.firstChild;
        showMarkdown(grown, source.slice(0, end));
        kept += first !== null && first === grown.firstChild;
      }
      return [whole.innerHTML === grown.innerHTML, kept];
    }"""
    with tab(browser, served.url) as page:
        is_same, kept = page.evaluate(script, source)
        assert is_same and kept > len(source) - 10  # what is finished is not built again


def test_no_text_takes_long_or_goes_deep(browser: Browser, served: Served) -> None:
    script = """async (source) => {
      const { showMarkdown } = await import("/page/markdown.js");
      const node = document.createElement("div");
      const begin = performance.now();
      showMarkdown(node, source);
      let deepest = 0;
      for (const one of node.querySelectorAll("*")) {
        let depth = 0;
        for (let up = one; up !== node; up = up.parentNode) depth += 1;
        deepest = Math.max(deepest, depth);
        if (deepest > 500) break;
      }
      return [performance.now() - begin, deepest];
    }"""
    with tab(browser, served.url) as page:
        for source in ENDLESS:
            milliseconds, deepest = page.evaluate(script, source)
            assert milliseconds < 1500 and deepest < 150, (source[:40], milliseconds, deepest)


def is_unhurt(page: Page) -> None:
    page.wait_for_timeout(50)
    assert page.evaluate("window.hurt") is None
    assert page.locator("main :is(script, iframe, img, style, link, base, meta, object, embed, input)").count() == 0
    for address in page.locator("a[href]").evaluate_all("nodes => nodes.map(node => node.href)"):
        assert address.startswith(("https://example.org/", f"{page.url.split('#')[0]}#prompt")), address
    handlers = "nodes => nodes.flatMap(node => node.getAttributeNames()).filter(name => name.startsWith('on'))"
    assert page.locator("*").evaluate_all(handlers) == []


def test_hostile_answers_are_text(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        whole = "\n\n".join(HOSTILE)
        answer_with(page, *(whole[at : at + 7] for at in range(0, len(whole), 7)), reasoning=whole)
        ask(page, whole)
        wait_for_answer(page)
        page.locator(".reasoning summary").click()
        is_unhurt(page)
        assert "<script>window.hurt = 1</script>" in page.locator(".message.assistant > .content").inner_text()
        for link in page.locator(".message.assistant a").all():
            link.hover()
        page.reload()
        page.locator(".message.assistant").wait_for()
        is_unhurt(page)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_names_and_files_are_text(browser: Browser, served: Served, tmp_path: Path, number: int) -> None:
    evil = HOSTILE[number]
    message = {"id": "a", "parent": None, "role": "user", "content": evil, "created": 1}
    answer = {
        "id": "b", "parent": "a", "role": "assistant", "content": evil, "created": 2, "model": evil,
        "reasoning": evil, "error": evil, "finish": evil, "seed": evil, "onclick": evil,
        "tokens": [{"token": evil, "logprob": -1, "top_logprobs": [{"token": evil, "logprob": -2}]}],
        "usage": {"generated": evil, "prompt": 1},
    }
    conversation = {
        "id": evil, "title": evil, "leaf": "b", "messages": {"a": message, "b": answer},
        "settings": {"system": evil, "model": evil, "temperature": evil, "__proto__x": evil},
    }
    file = tmp_path / "evil.json"
    file.write_text(json.dumps({"format": "puna-conversations", "version": 1, "conversations": [conversation]}))
    with tab(browser, served.url) as page:
        page.locator("#file").set_input_files(file)
        page.locator(".message.assistant").wait_for()
        is_unhurt(page)
        page.locator("#open-settings").click()
        page.get_by_role("button", name="Token probabilities").click()
        page.locator(".token").first.wait_for()
        is_unhurt(page)
        assert page.locator("#title").inner_text().strip()


WRONG = [
    ("no json", "This file is not JSON."),
    ("[]", "This file has no conversations that were exported here."),
    ('{"format": "puna-conversations", "version": 2, "conversations": []}', "another version"),
]
_MESSAGE = {"id": "a", "parent": None, "role": "user", "content": "x", "created": 1}
for _change, _words in (
    ({"messages": {"a": {**_MESSAGE, "parent": "a"}}}, "in a circle"),
    ({"messages": {"a": {**_MESSAGE, "parent": "z"}}}, "without a place"),
    ({"messages": {"a": {**_MESSAGE, "role": "system"}}}, "no text"),
    ({"messages": {"a": {**_MESSAGE, "content": {"x": 1}}}}, "no text"),
    ({"messages": {"a": {**_MESSAGE, "id": "b"}}}, "without an id"),
    ({"messages": {"toString": {**_MESSAGE, "id": "toString"}}}, "without an id"),
    ({"messages": []}, "no messages"),
    ({"leaf": "b"}, "where it ends"),
):
    _one = {"title": "", "settings": {}, "leaf": "a", "messages": {"a": _MESSAGE}, **_change}
    _file = {"format": "puna-conversations", "version": 1, "conversations": [_one]}
    WRONG.append((json.dumps(_file), _words))


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_files_are_refused_whole(browser: Browser, served: Served, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(text)
    with tab(browser, served.url) as page:
        page.locator("#file").set_input_files(file)
        page.locator("#banner", has_text=words).wait_for()
        page.reload()
        page.locator(".welcome").wait_for()
        assert page.locator("#list .open").count() == 0


def test_server_errors_are_one_sentence_with_a_way_on(browser: Browser, served: Served) -> None:
    with tab(browser, served.url) as page:
        evil = f"this cannot be done: {HOSTILE[1]}"
        body = json.dumps({"error": {"message": evil, "type": "x", "param": None, "code": "invalid_value"}})
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, body=body))
        ask(page, "Hello")
        page.locator(".error", has_text=evil).wait_for()
        is_unhurt(page)
        page.unroute("**/v1/chat/completions")
        answer_with(page, "Half of", more='data: {"error": {"message": "the model failed"}}\n\ndata: [DONE]\n\n')
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text="the model failed").wait_for()
        assert page.locator(".message.assistant > .content").inner_text() == "Half of"
        answer_with(page, "Cut", more="")
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text="The connection broke before the answer was complete.").wait_for()
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.get_by_role("button", name="Try again").click()
        page.locator(".error", has_text="The server cannot be reached.").wait_for()
        page.unroute("**/v1/chat/completions")
        bodies = answer_with(page, "Whole.")
        page.get_by_role("button", name="Try again").click()
        page.locator(".message", has_text="Whole.").wait_for()
        assert bodies[0]["messages"] == [{"role": "user", "content": "Hello"}]
        assert not page.locator(".error:visible").count()
        begin = time.monotonic()
        page.reload()
        page.locator(".message", has_text="Whole.").wait_for()
        assert time.monotonic() - begin < 10
