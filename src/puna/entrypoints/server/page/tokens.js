// The probabilities of an answer's tokens: each token in a colour, and what else might have stood there.

import { element } from "./dom.js";

const SHADES = [0.9, 0.5, 0.2, 0.05]; // a token at least this likely has shade 0, 1, 2, 3; all others have 4

/** The part of an answer that shows `tokens`, in the form in which answers over the server's interface have them. */
export function showTokens(tokens) {
  const detail = element("div", { class: "token-detail", "aria-live": "polite" });
  const list = element("div", { class: "token-list", role: "listbox", "aria-label": "Tokens of this answer" });
  list.setAttribute("aria-orientation", "horizontal");
  const nodes = tokens.map((token, index) => tokenNode(token, index));
  for (const node of nodes) {
    list.append(node);
    if (node.textContent.endsWith("⏎")) list.append(element("br"));
  }
  let current = 0;

  function select(index, isFocused) {
    nodes[current]?.setAttribute("tabindex", "-1");
    nodes[current]?.setAttribute("aria-selected", "false");
    current = Math.max(0, Math.min(nodes.length - 1, index));
    const node = nodes[current];
    if (!node) return;
    node.setAttribute("tabindex", "0");
    node.setAttribute("aria-selected", "true");
    if (isFocused) node.focus();
    detail.replaceChildren(...describe(tokens[current]));
  }

  const indexOf = (event) => nodes.indexOf(event.target.closest("[role=option]"));
  list.addEventListener("pointerover", (event) => indexOf(event) >= 0 && select(indexOf(event), false));
  list.addEventListener("click", (event) => indexOf(event) >= 0 && select(indexOf(event), true));
  list.addEventListener("focusin", (event) => indexOf(event) !== current && select(indexOf(event), false));
  list.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    const ends = { Home: 0, End: nodes.length - 1 };
    if (event.key in moves) select(current + moves[event.key], true);
    else if (event.key in ends) select(ends[event.key], true);
    else return;
    event.preventDefault();
  });
  select(0, false);
  const mean = tokens.reduce((sum, token) => sum + token.logprob, 0) / (tokens.length || 1);
  const head = `${tokens.length} tokens, mean log-probability ${mean.toFixed(3)}. Arrow keys go from one to the next.`;
  return element(
    "section",
    { class: "tokens", "aria-label": "Token probabilities" },
    element("p", { class: "hint", text: head }),
    list,
    detail,
  );
}

function tokenNode(token, index) {
  const likelihood = Math.exp(token.logprob);
  const shade = SHADES.findIndex((least) => likelihood >= least);
  return element("span", {
    class: `token shade-${shade < 0 ? SHADES.length : shade}`,
    role: "option",
    tabindex: index === 0 ? 0 : -1,
    "aria-selected": "false",
    "aria-label": `${spoken(token)}, ${percent(token.logprob)}`,
    text: visible(token),
  });
}

function describe(token) {
  const rows = token.top_logprobs.some((other) => isSame(other, token))
    ? token.top_logprobs
    : [...token.top_logprobs, token];
  return rows.map((row) => {
    const bar = element("span", { class: "bar" });
    bar.style.setProperty("--share", Math.exp(row.logprob).toFixed(4));
    return element(
      "div",
      { class: isSame(row, token) ? "token-row chosen" : "token-row" },
      element("code", { text: visible(row) }),
      bar,
      element("span", { class: "number", text: percent(row.logprob) }),
      element("span", { class: "number faint", text: row.logprob.toFixed(3) }),
    );
  });
}

const isSame = (a, b) => a.token === b.token && a.logprob === b.logprob;

function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  if (share >= 99.95 && share < 100) return ">99.9 %";
  return share >= 0.05 ? `${share.toFixed(1)} %` : share > 0 ? `${share.toExponential(0)} %` : "0 %";
}

// A token that is a part of a character is shown by its bytes.
function visible({ token, bytes }) {
  if (token.includes("\ufffd") && bytes?.length) {
    return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  }
  return token.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}

function spoken(token) {
  return visible(token).replace(/⏎/g, "line end").replace(/^ +$/, "space");
}
