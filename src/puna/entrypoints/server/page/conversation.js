// A conversation: a tree of messages, of which one branch is shown. Editing and asking again begin a new branch, so
// that nothing is lost. What is read from a file is checked here.

import { uniqueName } from "./dom.js";

const ROLES = ["user", "assistant"];
const MOST_MESSAGES = 10_000;

/** A conversation without messages. */
export function newConversation(settings) {
  const now = Date.now();
  return { id: uniqueName(), title: "", created: now, updated: now, settings, messages: {}, leaf: null };
}

/** Adds a message below another (null: at the root), and shows its branch. */
export function addMessage(conversation, parent, role, content) {
  const message = { id: uniqueName(), parent, role, content, created: Date.now() };
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  return message;
}

/** The messages of the branch that is shown, from the first to the last. */
export function branch(conversation, leaf = conversation.leaf) {
  const path = [];
  for (let id = leaf; id !== null; id = conversation.messages[id].parent) path.push(conversation.messages[id]);
  return path.reverse();
}

/** The messages that could stand where this one does, the oldest first. */
export function versions(conversation, message) {
  return Object.values(conversation.messages)
    .filter((other) => other.parent === message.parent && other.role === message.role)
    .sort((a, b) => a.created - b.created);
}

/** Shows the branch of a message: down to its latest end. */
export function choose(conversation, message) {
  const latest = Object.values(conversation.messages).sort((a, b) => b.created - a.created);
  let id = message.id;
  for (let next = message; next; next = latest.find((other) => other.parent === id)) id = next.id;
  conversation.leaf = id;
}

/** What a conversation is called, if it was not given a name: how it begins. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = Object.values(conversation.messages).find((message) => message.parent === null);
  const text = first ? first.content.trim().replace(/\s+/g, " ") : "";
  return text.length > 60 ? `${text.slice(0, 60)}…` : text || "New conversation";
}

/** The messages as the server takes them: the system prompt, then a branch. */
export function asked(conversation, leaf) {
  const system = conversation.settings.system?.trim();
  const said = (leaf === null ? [] : branch(conversation, leaf))
    .filter((message) => message.content || message.role === "user")
    .map(({ role, content }) => ({ role, content }));
  return system ? [{ role: "system", content: system }, ...said] : said;
}

/** Conversations as a file. */
export function exported(conversations) {
  return JSON.stringify({ format: "puna-conversations", version: 1, conversations }, null, 1);
}

/**
 * The conversations of a file, each with a new id.
 * Throws an Error with one sentence if it is no such file; nothing of it is taken then.
 */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== "puna-conversations" || !Array.isArray(file.conversations)) {
    throw new Error("This file has no conversations that were exported here.");
  }
  if (file.version !== 1) throw new Error("This file was written by another version of the page.");
  return file.conversations.map((value, index) => checked(value, `Conversation ${index + 1} of this file`));
}

function checked(value, name) {
  const fail = (what) => {
    throw new Error(`${name} ${what}.`);
  };
  const isObject = (one) => typeof one === "object" && one !== null && !Array.isArray(one);
  if (!isObject(value) || !isObject(value.messages)) fail("has no messages");
  const entries = Object.entries(value.messages);
  if (entries.length > MOST_MESSAGES) fail(`has more than ${MOST_MESSAGES} messages`);
  const messages = {};
  for (const [id, message] of entries) {
    const isNamed = /^\w{1,64}$/.test(id) && !(id in Object.prototype) && isObject(message) && message.id === id;
    if (!isNamed) fail("has a message without an id");
    if (!ROLES.includes(message.role) || typeof message.content !== "string") fail("has a message that is no text");
    if (message.parent !== null && !Object.hasOwn(value.messages, message.parent)) fail("has a message without a place");
    messages[id] = readMessage(message);
  }
  for (const id of Object.keys(messages)) if (!endsAtRoot(messages, id)) fail("has messages in a circle");
  const isLeaf = value.leaf === null ? entries.length === 0 : Object.hasOwn(messages, value.leaf);
  if (!isLeaf) fail("does not say where it ends");
  return {
    id: uniqueName(),
    title: text(value.title) ?? "",
    created: number(value.created) ?? Date.now(),
    updated: number(value.updated) ?? Date.now(),
    settings: readSettings(value.settings),
    messages,
    leaf: value.leaf,
  };
}

function endsAtRoot(messages, id) {
  const isKnown = (message) => message.parent === null || message.isChecked;
  const path = [];
  let message = messages[id];
  while (!isKnown(message) && path.length <= MOST_MESSAGES) {
    path.push(message);
    message = messages[message.parent];
  }
  if (path.length > MOST_MESSAGES) return false;
  for (const one of path) Object.defineProperty(one, "isChecked", { value: true, enumerable: false });
  return true;
}

const text = (value) => (typeof value === "string" ? value : undefined);
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : undefined);

// Only what the page itself writes, in the form in which it does: the rest of a file is left out.
function readMessage({ id, parent, role, content, created, ...rest }) {
  const message = { id, parent, role, content, created: number(created) ?? 0 };
  for (const name of ["reasoning", "model", "finish", "error", "seed"]) {
    if (text(rest[name]) !== undefined) message[name] = rest[name];
  }
  if (typeof rest.usage === "object" && rest.usage !== null) {
    message.usage = {};
    for (const name of ["prompt", "cached", "generated", "first", "seconds", "counted"]) {
      if (number(rest.usage[name]) !== undefined) message.usage[name] = rest.usage[name];
    }
  }
  if (Array.isArray(rest.tokens)) message.tokens = rest.tokens.filter(isToken).map(readToken);
  return message;
}

function isToken(value) {
  return typeof value === "object" && value !== null && typeof value.token === "string" && Number.isFinite(value.logprob);
}

function readToken({ token, logprob, bytes, top_logprobs: likeliest }) {
  const isBytes = Array.isArray(bytes) && bytes.every((byte) => Number.isInteger(byte) && byte >= 0 && byte < 256);
  const others = Array.isArray(likeliest) ? likeliest.filter(isToken).slice(0, 20) : [];
  const kept = others.map((other) => ({ token: other.token, logprob: other.logprob }));
  return { token, logprob, bytes: isBytes ? bytes : null, top_logprobs: kept };
}

/** The settings in a value of unknown origin; the rest of it is left out. */
export function readSettings(value) {
  const settings = {};
  if (typeof value !== "object" || value === null) return settings;
  if (text(value.system) !== undefined) settings.system = value.system;
  if (text(value.model) !== undefined) settings.model = value.model;
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "seed"]) {
    if (text(value[name]) !== undefined) settings[name] = value[name];
  }
  if (value.records === true) settings.records = true;
  return settings;
}
