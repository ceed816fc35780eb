// Code in colours: one pass with a sticky expression for each language; what it does not know is plain.

import { element } from "./dom.js";

const LONGEST = 100_000; // characters; longer code is shown plain
const words = (text) => new Set(text.split(" "));

const C_LIKE = {
  comment: String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|(?![^]))`,
  string: String.raw`"(?:[^"\\\n]|\\[^])*"?|'(?:[^'\\\n]|\\[^])*'?`,
};
const HASHED = {
  comment: String.raw`#[^\n]*`,
  string: String.raw`"(?:[^"\\\n]|\\[^])*"?|'(?:[^'\\\n]|\\[^])*'?`,
};
const NUMBER = String.raw`\b(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w{0,4}\b`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

const LANGUAGES = {
  python: {
    comment: HASHED.comment,
    string: String.raw`"""[^]*?(?:"""|(?![^]))|'''[^]*?(?:'''|(?![^]))|` + HASHED.string,
    meta: String.raw`@[\w.]+`,
    keywords: words(
      "and as assert async await break case class continue def del elif else except finally for from global if import in " +
        "is lambda match nonlocal not or pass raise return try while with yield None True False self",
    ),
  },
  javascript: {
    ...C_LIKE,
    string: "`(?:[^`\\\\]|\\\\[^])*`?|" + C_LIKE.string,
    keywords: words(
      "abstract as async await break case catch class const continue debugger declare default delete do else enum export " +
        "extends false finally for from function get if implements import in instanceof interface let new null of " +
        "private protected public readonly return set static super switch this throw true try type typeof undefined var " +
        "void while yield",
    ),
  },
  c: {
    ...C_LIKE,
    meta: String.raw`#[ \t]*\w+|@\w+`,
    keywords: words(
      "abstract alignas auto bool boolean break byte case catch chan char class concept const constexpr continue crate " +
        "decltype default defer delete do double dyn else enum explicit extends extern false final finally float fn for " +
        "friend func go goto if impl implements import in include inline int interface internal let long loop map match " +
        "mod move mut namespace new nil null nullptr object operator override package private protected pub public range " +
        "ref register return self short signed sizeof static string struct super switch template this throw throws trait " +
        "true try type typedef typename union unsafe unsigned use using val var virtual void volatile when where while",
    ),
  },
  shell: {
    ...HASHED,
    string: String.raw`"(?:[^"\\]|\\[^])*"?|'[^']*'?`,
    meta: String.raw`\$\{?[\w@#?*!-]+\}?`,
    keywords: words(
      "alias case cd do done echo elif else esac exit export fi for function if in local read return set source sudo then " +
        "unset until while",
    ),
  },
  json: { string: C_LIKE.string, keywords: words("true false null") },
  yaml: { ...HASHED, meta: String.raw`^[ \t]*(?:- )?[\w.-]+(?=:)`, keywords: words("true false null yes no") },
  sql: {
    comment: String.raw`--[^\n]*|\/\*[^]*?(?:\*\/|(?![^]))`,
    string: String.raw`'(?:[^']|'')*'?|"[^"\n]*"?`,
    isLoud: true,
    keywords: words(
      "add all alter and as asc between by case check column constraint create cross database default delete desc distinct " +
        "drop else end exists foreign from full group having if in index inner insert into is join key left like limit " +
        "not null offset on or order outer over partition primary references right select set table then union unique " +
        "update values view when where with",
    ),
  },
  html: {
    comment: String.raw`<!--[^]*?(?:-->|(?![^]))`,
    string: String.raw`"[^"\n]*"?|'[^'\n]*'?`,
    meta: String.raw`<\/?[A-Za-z][\w:-]*|\/?>`,
    keywords: words(""),
  },
  css: {
    comment: String.raw`\/\*[^]*?(?:\*\/|(?![^]))`,
    string: C_LIKE.string,
    meta: String.raw`@[\w-]+|[\w-]+(?=[ \t]*:[^:])|#[\da-fA-F]{3,8}\b`,
    keywords: words("important inherit initial none auto"),
  },
  diff: { added: String.raw`^\+[^\n]*`, removed: String.raw`^-[^\n]*`, meta: String.raw`^@@[^\n]*`, keywords: words("") },
};

const NAMES = {
  py: "python", python3: "python", js: "javascript", jsx: "javascript", ts: "javascript", tsx: "javascript",
  typescript: "javascript", mjs: "javascript", "c++": "c", cpp: "c", cc: "c", h: "c", hpp: "c", cs: "c", csharp: "c",
  java: "c", kotlin: "c", swift: "c", scala: "c", go: "c", golang: "c", rust: "c", rs: "c", php: "c", dart: "c",
  sh: "shell", bash: "shell", zsh: "shell", console: "shell", dockerfile: "shell", makefile: "shell", ruby: "python",
  rb: "python", toml: "yaml", ini: "yaml", yml: "yaml", jsonc: "json", xml: "html", svg: "html", scss: "css",
  patch: "diff", postgresql: "sql", sqlite: "sql", mysql: "sql",
};

const compiled = new Map();

function rulesOf(name) {
  const language = LANGUAGES[name];
  if (!compiled.has(name)) {
    const parts = ["comment", "string", "added", "removed", "meta"]
      .filter((kind) => language[kind])
      .map((kind) => `(?<${kind}>${language[kind]})`);
    compiled.set(name, new RegExp([...parts, `(?<number>${NUMBER})`, `(?<word>${WORD})`, "[^]"].join("|"), "gm"));
  }
  return compiled.get(name);
}

/** The nodes of some code: coloured where its language is known. */
export function highlight(text, language) {
  const asked = language.toLowerCase();
  const name = Object.hasOwn(NAMES, asked) ? NAMES[asked] : asked;
  if (!Object.hasOwn(LANGUAGES, name) || text.length > LONGEST) return [document.createTextNode(text)];
  const { keywords, isLoud } = LANGUAGES[name];
  const nodes = [];
  let plain = "";
  const rules = rulesOf(name);
  for (const found of text.matchAll(rules)) {
    const kind = kindOf(found, text, keywords, isLoud);
    if (kind === null) {
      plain += found[0];
      continue;
    }
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(element("span", { class: `code-${kind}`, text: found[0] }));
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

function kindOf(found, text, keywords, isLoud) {
  const { groups } = found;
  if (groups.word !== undefined) {
    if (keywords.has(isLoud ? groups.word.toLowerCase() : groups.word)) return "keyword";
    return text[found.index + groups.word.length] === "(" ? "name" : null;
  }
  for (const kind of ["comment", "string", "added", "removed", "meta", "number"]) {
    if (groups[kind] !== undefined) return kind;
  }
  return null;
}
