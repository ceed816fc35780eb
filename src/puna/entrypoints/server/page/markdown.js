// Markdown as elements. It knows what models write: headings, lists, tables, quotes, code, rules, emphasis, links.
// HTML in the text stays text. Everything takes time in proportion to the text, whatever the text is.

import { copy, element, iconButton } from "./dom.js";
import { highlight } from "./highlight.js";

const DEEPEST = 12; // of quotes and lists inside each other; what is deeper is text
const MOST_OPEN = 16; // marks of emphasis that wait for a partner; more of them are text, as are longer runs than
const LONGEST_RUN = 6;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*)|)$/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/**
 * Shows a text, block by block. Blocks that are as they were keep their elements, so that a text that grows is not
 * built anew each time, and what is marked in it stays marked.
 */
export function showMarkdown(container, source) {
  const blocks = parseBlocks(source.replace(/\r\n?/g, "\n").split("\n"), 0);
  const before = container.markdownBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < before.length && blocks[same].key === before[same]) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...blocks.slice(same).map(build));
  container.markdownBlocks = blocks.map((block) => block.key);
}

// Blocks ------------------------------------------------------------------------------------------------------------

// Each block is `{kind, key, ...}`; two blocks with the same key look the same.
function parseBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const { block, end } = parseBlock(lines, at, depth);
    block.key = `${block.kind}\n${lines.slice(at, end).join("\n")}`;
    blocks.push(block);
    at = end;
  }
  return blocks;
}

function parseBlock(lines, at, depth) {
  const line = lines[at];
  let found = FENCE.exec(line);
  if (found) return parseFence(lines, at, found);
  found = HEADING.exec(line);
  if (found) {
    const text = (found[2] ?? "").trim().replace(/(?:^|[ \t])#+$/, "");
    return { block: { kind: "heading", level: found[1].length, text }, end: at + 1 };
  }
  if (RULE.test(line)) return { block: { kind: "rule" }, end: at + 1 };
  if (depth < DEEPEST && QUOTE.test(line)) return parseQuote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return parseList(lines, at, depth);
  if (isTableHead(lines, at)) {
    const head = cells(line);
    const sides = cells(lines[at + 1]);
    if (head.length === sides.length) return parseTable(lines, at, head, sides);
  }
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end += 1;
  return { block: { kind: "paragraph", text: lines.slice(at, end).map((one) => one.trimStart()).join("\n") }, end };
}

function isTableHead(lines, at) {
  const below = lines[at + 1] ?? "";
  return lines[at].includes("|") && below.length < 1000 && DELIMITERS.test(below);
}

function interrupts(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (isTableHead(lines, at) && lines[at + 1].includes("|")) return true;
  if (depth >= DEEPEST) return false;
  const item = ITEM.exec(line);
  return QUOTE.test(line) || (item !== null && Boolean(item[4]) && (!/\d/.test(item[2]) || /^1[.)]/.test(item[2])));
}

function parseFence(lines, at, [, indent, fence, info]) {
  const body = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const close = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(lines[end]);
    if (close && close[1][0] === fence[0] && close[1].length >= fence.length) break;
    body.push(indent && lines[end].startsWith(indent) ? lines[end].slice(indent.length) : lines[end]);
  }
  const isOpen = end >= lines.length;
  const block = { kind: isOpen ? "open code" : "code", language: info.trim().split(/\s+/)[0], text: body.join("\n") };
  return { block, end: Math.min(end + 1, lines.length) };
}

function parseQuote(lines, at, depth) {
  const body = [];
  let end = at;
  while (end < lines.length && lines[end].trim()) {
    if (!QUOTE.test(lines[end]) && interrupts(lines, end, depth)) break;
    body.push(lines[end].replace(QUOTE, ""));
    end += 1;
  }
  return { block: { kind: "quote", blocks: parseBlocks(body, depth + 1) }, end };
}

function parseList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const mark = first[2].slice(-1);
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let isLoose = false;
  let end = at;
  const isNext = (line) => {
    const found = ITEM.exec(line ?? "");
    return found !== null && found[2].slice(-1) === mark && /\d/.test(found[2]) === isOrdered && !RULE.test(line);
  };
  while (isNext(lines[end])) {
    const found = ITEM.exec(lines[end]);
    const space = (found[3] ?? " ").length;
    const width = found[1].length + found[2].length + (space > 4 ? 1 : space);
    const body = [found[4] ?? ""];
    end += 1;
    let blanks = 0;
    for (; end < lines.length; end += 1) {
      const line = lines[end];
      if (!line.trim()) {
        blanks += 1;
        continue;
      }
      const indent = line.length - line.trimStart().length;
      // A mark that is set in, if only by one space, begins a list inside this one: models write two spaces for any.
      const isInside = indent >= width || (indent > found[1].length + 1 && /^\s*(?:[-*+]|\d{1,9}[.)])\s/.test(line));
      if (!isInside && (blanks || ITEM.test(line) || interrupts(lines, end, depth))) break;
      if (blanks) {
        isLoose = true;
        body.push(...Array(blanks).fill(""));
        blanks = 0;
      }
      body.push(line.slice(Math.min(indent, width)));
    }
    items.push(parseBlocks(body, depth + 1));
    if (blanks && isNext(lines[end])) isLoose = true;
  }
  return { block: { kind: "list", isOrdered, isLoose, start: parseInt(first[2], 10), items }, end };
}

function parseTable(lines, at, head, sides) {
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].trim() && lines[end].includes("|"); end += 1) {
    const row = cells(lines[end]).slice(0, head.length);
    rows.push([...row, ...Array(head.length - row.length).fill("")]);
  }
  const align = sides.map((side) => (side.endsWith(":") ? (side.startsWith(":") ? "center" : "end") : "start"));
  return { block: { kind: "table", head, align, rows }, end };
}

function cells(line) {
  const found = [];
  let cell = "";
  const text = line.trim();
  for (let at = text.startsWith("|") ? 1 : 0; at < text.length; at += 1) {
    if (text[at] === "\\" && text[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (text[at] === "|") {
      found.push(cell.trim());
      cell = "";
    } else cell += text[at];
  }
  if (cell.trim() || !text.endsWith("|")) found.push(cell.trim());
  return found;
}

// Elements ----------------------------------------------------------------------------------------------------------

function build(block) {
  switch (block.kind) {
    case "heading": // the page's own headings are above those of an answer
      return element(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, ...inline(block.text));
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(build));
    case "code":
    case "open code":
      return codeBlock(block);
    case "list":
      return buildList(block);
    case "table":
      return buildTable(block);
    default:
      return element("p", {}, ...inline(block.text));
  }
}

function buildList({ isOrdered, isLoose, start, items }) {
  const list = element(isOrdered ? "ol" : "ul", { start: isOrdered && start !== 1 ? start : null });
  for (const blocks of items) {
    const item = element("li");
    for (const block of blocks) {
      const isTight = block.kind === "paragraph" && !isLoose;
      if (block.kind === "paragraph" && block === blocks[0]) block.text = block.text.replace(/^\[( |x|X)\] /, ticked);
      item.append(...(isTight ? inline(block.text) : [build(block)]));
    }
    list.append(item);
  }
  return list;
}

function ticked(_, mark) {
  return mark === " " ? "☐ " : "☑ ";
}

function buildTable({ head, align, rows }) {
  const cell = (tag, text, index) => element(tag, { class: `to-${align[index]}` }, ...inline(text));
  const top = element("tr", {}, ...head.map((text, index) => cell("th", text, index)));
  for (const node of top.children) node.scope = "col";
  const body = rows.map((row) => element("tr", {}, ...row.map((text, index) => cell("td", text, index))));
  const table = element("table", {}, element("thead", {}, top), element("tbody", {}, ...body));
  return element("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" }, table);
}

function codeBlock({ language, text }) {
  const button = iconButton("copy", "Copy code", () => copy(text, button));
  const bar = element("div", { class: "code-bar" }, element("span", { text: language || "text" }), button);
  const code = element("code", {}, ...highlight(text, language));
  const shown = element("pre", { tabindex: 0, role: "group", "aria-label": `Code, ${language || "text"}` }, code);
  return element("div", { class: "code" }, bar, shown);
}

// Text inside a block ----------------------------------------------------------------------------------------------

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: "\u00a0", "#39": "'" };
const SPECIAL = /[\\`*_~[\]!&<\n]|https?:\/\//g;
const TARGET = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"\n]*")?\s*\)/;
const BARE_LINK = /https?:\/\/[^\s<>"'`|\\^{}]+/y;

/** A link's address if it can do no harm, else null: web and mail only, and never relative to this page. */
export function safeAddress(text) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const { protocol, href } = new URL(text);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}

function link(address, children) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

/** The nodes of a text: one pass over it, with a stack of what may turn out to be emphasis or a link. */
export function inline(text) {
  const nodes = []; // nodes, and marks: {mark, count, canOpen, canClose} or {bracket}
  const runs = backtickRuns(text);
  const brackets = []; // places in `nodes`
  let from = 0;
  const flush = (end) => {
    if (end > from) nodes.push(document.createTextNode(text.slice(from, end)));
  };
  const special = new RegExp(SPECIAL);
  for (let found = special.exec(text); found; found = special.exec(text)) {
    const at = found.index;
    const what = found[0];
    let next = at;
    let node = null;
    if (what === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      node = document.createTextNode(text[at + 1]);
      next = at + 2;
    } else if (what === "\\" && text[at + 1] === "\n") {
      node = element("br");
      next = at + 2;
    } else if (what === "\n") {
      node = element("br"); // models mean a line's end as they write it
      next = at + 1;
    } else if (what === "`") {
      const length = runLength(text, at);
      const end = runs.next(length, at + length);
      const inside = end < 0 ? "" : text.slice(at + length, end);
      const isPadded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim() !== "";
      node = end < 0
        ? document.createTextNode(text.slice(at, at + length))
        : element("code", { text: (isPadded ? inside.slice(1, -1) : inside).replace(/\n/g, " ") });
      next = end < 0 ? at + length : end + length;
    } else if (what === "*" || what === "_" || what === "~") {
      next = at + runLength(text, at);
      node = delimiter(text, at, next);
    } else if (what === "[" || (what === "!" && text[at + 1] === "[")) {
      next = at + what.length + (what === "!" ? 1 : 0);
      flush(at);
      brackets.push(nodes.length);
      from = at;
      node = { bracket: true, text: text.slice(at, next) };
    } else if (what === "]" && brackets.length) {
      flush(at);
      from = at;
      const target = text[at + 1] === "(" && TARGET.exec(text.slice(at + 1, at + 2050));
      const address = target && safeAddress(target[1]);
      const open = brackets.pop();
      if (address) {
        const inside = nodes.splice(open);
        nodes.push(link(address, settle(inside.slice(1))));
        from = special.lastIndex = at + 1 + target[0].length;
        brackets.length = 0; // a link has no link inside
      } else {
        nodes[open] = document.createTextNode(nodes[open].text);
      }
      continue;
    } else if (what === "&") {
      const entity = /^&(#39|\w{2,4});/.exec(text.slice(at, at + 8));
      if (entity && Object.hasOwn(ENTITIES, entity[1])) {
        node = document.createTextNode(ENTITIES[entity[1]]);
        next = at + entity[0].length;
      }
    } else if (what === "<") {
      const tag = /^<(?:br ?\/?|(https?:\/\/[^\s<>]{1,2000}))>/i.exec(text.slice(at, at + 2012));
      if (tag) {
        const address = tag[1] ? safeAddress(tag[1]) : null;
        if (!tag[1]) node = element("br");
        else if (address) node = link(address, [document.createTextNode(tag[1])]);
        if (node) next = at + tag[0].length;
      }
    } else if (what.startsWith("http") && !/\w/.test(text[at - 1] ?? "")) {
      BARE_LINK.lastIndex = at;
      let address = BARE_LINK.exec(text)?.[0] ?? "";
      let end = address.length;
      while (end && ".,;:!?)*_~]".includes(address[end - 1])) end -= 1;
      address = address.slice(0, end);
      const safe = brackets.length ? null : safeAddress(address);
      if (safe) {
        node = link(safe, [document.createTextNode(address)]);
        next = at + address.length;
      }
    }
    if (node === null) continue;
    flush(at);
    nodes.push(node);
    from = special.lastIndex = next;
  }
  flush(text.length);
  return settle(nodes);
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

// Where runs of so many backticks are; asked from left to right, so that each is looked at once.
function backtickRuns(text) {
  const places = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!places.has(run.length)) places.set(run.length, { list: [], at: 0 });
    places.get(run.length).list.push(index);
  }
  return {
    next(length, begin) {
      const known = places.get(length);
      if (known === undefined) return -1; // the rest of a run that begins with an escape
      while (known.at < known.list.length && known.list[known.at] < begin) known.at += 1;
      return known.list[known.at] ?? -1;
    },
  };
}

function delimiter(text, at, end) {
  const before = text[at - 1] ?? " ";
  const after = text[end] ?? " ";
  const isSpace = (one) => /\s/.test(one);
  const isMark = (one) => /[\p{P}\p{S}]/u.test(one);
  const isLeft = !isSpace(after) && (!isMark(after) || isSpace(before) || isMark(before));
  const isRight = !isSpace(before) && (!isMark(before) || isSpace(after) || isMark(after));
  const mark = text[at];
  if (end - at > LONGEST_RUN || (mark === "~" && end - at !== 2)) return document.createTextNode(text.slice(at, end));
  return {
    mark,
    count: end - at,
    canOpen: mark === "_" ? isLeft && (!isRight || isMark(before)) : isLeft,
    canClose: mark === "_" ? isRight && (!isLeft || isMark(after)) : isRight,
  };
}

// Pairs the marks of emphasis; those without a partner become text.
function settle(nodes) {
  const out = [];
  const openers = { "*": [], _: [], "~": [] }; // places in `out`
  for (const node of nodes) {
    if (node instanceof Node) {
      out.push(node);
      continue;
    }
    if (node.bracket) {
      out.push(document.createTextNode(node.text));
      continue;
    }
    let left = node.count;
    const open = openers[node.mark];
    while (node.canClose && left > 0) {
      const place = open.findLast((one) => arePartners(out[one], node));
      if (place === undefined) break;
      const opener = out[place];
      const size = node.mark === "~" || (opener.count >= 2 && left >= 2) ? 2 : 1;
      const inside = out.splice(place + 1).map(asNode);
      for (const list of Object.values(openers)) while (list.length && list.at(-1) > place) list.pop();
      out.push(element(node.mark === "~" ? "s" : size === 2 ? "strong" : "em", {}, ...inside));
      opener.count -= size;
      left -= size;
      if (opener.count === 0) {
        out.splice(place, 1);
        open.pop();
      }
    }
    if (left === 0) continue;
    if (node.canOpen && openers["*"].length + openers._.length + openers["~"].length < MOST_OPEN) {
      open.push(out.length);
      out.push({ ...node, count: left, length: node.count });
    } else out.push(document.createTextNode(node.mark.repeat(left)));
  }
  return out.map(asNode);
}

// A run that may both open and close has no partner with which its length adds up to a multiple of three, unless both
// lengths are: so `*a**b*` is one emphasis around two stars.
function arePartners(opener, closer) {
  const isAmbiguous = opener.canClose || closer.canOpen;
  const isThird = (opener.length + closer.count) % 3 === 0 && closer.count % 3 !== 0;
  return closer.mark === "~" || !isAmbiguous || !isThird;
}

function asNode(node) {
  return node instanceof Node ? node : document.createTextNode(node.mark.repeat(node.count));
}
