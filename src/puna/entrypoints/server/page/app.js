// The chat page: puts its parts together.

import { Announcer } from "./announcer.js";
import { NUM_LIKELIEST, answer } from "./answering.js";
import { listModels, readSettings, scoreText, setKey } from "./api.js";
import * as conversations from "./conversation.js";
import { askKey, askName, confirmed } from "./dialogs.js";
import { element, fit, textButton } from "./dom.js";
import { MessageView, welcome } from "./message.js";
import { SettingsPanel } from "./settings.js";
import { closeMenus, showList } from "./sidebar.js";
import { Store, remember, remembered } from "./store.js";

const IDEAS = ["Explain why the sky is blue.", "Write a haiku about a mountain lake.", "Show a loop in Python, with comments."];
const SAVE_EVERY_MS = 1000;
const DEFAULTS = conversations.readSettings(parsed(remembered("settings")));

const at = (id) => document.getElementById(id);
const thread = at("thread");
const prompt = at("prompt");
const announcer = new Announcer(at("said"));
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("puna") : null;
const runs = new Map(); // conversation id -> {conversation, message, view, controller}

let store;
let models = [];
let server = { defaults: {}, ranges: {}, max_top_logprobs: 0 };
let conversation;
let views = new Map();
let isAtEnd = true;

const panel = new SettingsPanel((settings) => {
  const { system, ...others } = settings;
  remember("settings", JSON.stringify(others));
  if (hasMessages()) save(conversation);
});

// Conversations ------------------------------------------------------------------------------------------------------

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const hasMessages = () => Object.keys(conversation.messages).length > 0;

async function save(one) {
  one.updated = Date.now();
  try {
    await store.put(one);
    tabs?.postMessage(one.id);
  } catch (error) {
    showBanner(error.message);
  }
}

async function refreshList() {
  const found = await store.list();
  showList(at("list"), found, conversation?.id, new Set(runs.keys()), {
    open: (id) => {
      closeDrawer();
      openConversation(id);
    },
    rename: async (one) => {
      const name = await askName("Rename the conversation", conversations.titleOf(one));
      if (!name) return;
      const kept = await latest(one.id);
      kept.title = name;
      await save(kept);
      await refreshList();
      showTitle();
    },
    exportOne: (one) => download([one]),
    remove: async (one) => {
      const title = conversations.titleOf(one);
      if (!(await confirmed("Delete the conversation?", `“${title}” cannot be brought back.`, "Delete"))) return;
      runs.get(one.id)?.controller.abort();
      await store.delete(one.id);
      tabs?.postMessage(one.id);
      if (one.id === conversation.id) startConversation();
      await refreshList();
      at("new").focus();
    },
  });
}

// A conversation that is answered, or shown, is the one in memory: what is kept may be a second older.
async function latest(id) {
  if (runs.has(id)) return runs.get(id).conversation;
  return conversation?.id === id ? conversation : store.get(id);
}

async function openConversation(id) {
  const found = await latest(id);
  if (!found) return startConversation();
  conversation = found;
  history.replaceState(null, "", `#${id}`);
  show();
  await refreshList();
}

function startConversation() {
  const { system, ...others } = conversation?.settings ?? DEFAULTS;
  conversation = conversations.newConversation({ ...others });
  history.replaceState(null, "", location.pathname);
  show();
  prompt.focus();
  return refreshList();
}

function download(chosen) {
  const address = URL.createObjectURL(new Blob([conversations.exported(chosen)], { type: "application/json" }));
  element("a", { href: address, download: `puna-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

async function importFile(file) {
  try {
    const found = conversations.imported(await file.text());
    for (const one of found) await store.put(one);
    announcer.say(`${found.length} conversations imported.`);
    tabs?.postMessage("");
    if (found.length) await openConversation(found[0].id);
  } catch (error) {
    showBanner(error.message);
  }
}

// What is shown -------------------------------------------------------------------------------------------------------

function show() {
  views = new Map();
  const run = runs.get(conversation.id);
  const nodes = conversations.branch(conversation).map((message) => {
    const others = conversations.versions(conversation, message);
    const isRunning = run?.message === message;
    const view = new MessageView(message, {
      place: others.indexOf(message),
      count: others.length,
      isRunning,
      actions: actionsOf(message, others),
    });
    if (isRunning) run.view = view;
    views.set(message.id, view);
    return view.node;
  });
  if (!nodes.length) nodes.push(welcome(modelName(), IDEAS, (idea) => send(idea)));
  at("messages").replaceChildren(...nodes);
  panel.show(conversation.settings);
  showModels();
  showTitle();
  showRunning();
  isAtEnd = true;
  scrollDown();
}

function actionsOf(message, others) {
  const parent = () => conversation.messages[message.parent];
  return {
    again: () => run(conversations.addMessage(conversation, message.parent, "assistant", "")),
    proceed: () => run(message, true),
    retry: () => {
      if (message.content || message.reasoning) return actionsOf(message, others).again();
      return run(message);
    },
    choose: (step) => {
      const other = others[others.indexOf(message) + step];
      if (!other || runs.has(conversation.id)) return;
      conversations.choose(conversation, other);
      save(conversation);
      show();
      const buttons = views.get(other.id)?.node.querySelectorAll(".foot button");
      (step < 0 ? buttons?.[0] : buttons?.[1])?.focus();
    },
    edit: (text) => {
      if (message.role === "user") return send(text, message.parent);
      const edited = conversations.addMessage(conversation, message.parent, "assistant", text);
      edited.model = message.model;
      save(conversation);
      show();
      return views.get(edited.id).node.querySelector("[aria-label=Edit]").focus();
    },
    tokens: async () => {
      if (message.tokens?.length) return message.tokens;
      if (server.max_top_logprobs < 1) throw new Error("This server reports no probabilities (--max-top-logprobs).");
      if (!message.content) throw new Error("There is no text to look at.");
      const before = conversations.asked(conversation, parent()?.id ?? null);
      const count = Math.min(NUM_LIKELIEST, server.max_top_logprobs);
      const tokens = await scoreText(message.model || modelName(), before, message.content, count);
      message.tokens = tokens;
      save(conversation);
      return tokens;
    },
  };
}

function showTitle() {
  const title = conversations.titleOf(conversation);
  at("title").textContent = title;
  document.title = `${title} – Puna`;
}

function showRunning() {
  const isRunning = runs.has(conversation.id);
  const hadFocus = [at("send"), at("stop")].includes(document.activeElement);
  at("send").hidden = isRunning;
  at("stop").hidden = !isRunning;
  if (hadFocus) prompt.focus();
}

function showBanner(text, press) {
  at("banner").hidden = !text;
  at("banner").replaceChildren(
    text,
    ...(text ? [textButton(press ? "Try again" : "Close", () => (showBanner(""), press?.()))] : []),
  );
}

function modelName() {
  return conversation.settings.model ?? models[0]?.id ?? "";
}

function showModels() {
  const select = at("model");
  const chosen = modelName();
  const options = models.map((model) =>
    element("option", { value: model.id, text: model.parent ? `${model.id} (adapter)` : model.id }),
  );
  if (chosen && !models.some((model) => model.id === chosen)) {
    options.push(element("option", { value: chosen, text: `${chosen} (not served now)` }));
  }
  select.replaceChildren(...options);
  select.value = chosen;
  select.disabled = options.length < 2;
}

function scrollDown() {
  if (isAtEnd) thread.scrollTop = thread.scrollHeight;
}

// Answers -------------------------------------------------------------------------------------------------------------

function send(text, parent = conversation.leaf) {
  if (!text.trim() || runs.has(conversation.id) || !canSend()) return;
  const message = conversations.addMessage(conversation, parent, "user", text);
  run(conversations.addMessage(conversation, message.id, "assistant", ""));
}

function canSend() {
  const { wrong } = panel;
  if (!wrong) return true;
  togglePanel("settings", true);
  wrong.focus();
  wrong.reportValidity();
  return false;
}

async function run(message, isContinued = false) {
  if (runs.has(conversation.id) || !canSend()) return;
  const controller = new AbortController();
  message.model = modelName();
  const mine = { conversation, message, view: null, controller };
  runs.set(conversation.id, mine);
  history.replaceState(null, "", `#${conversation.id}`);
  show();
  await save(mine.conversation);
  refreshList();
  announcer.say("Answering.");
  let isDrawn = true;
  let saved = performance.now();
  const error = await answer(mine.conversation, message, {
    signal: controller.signal,
    isContinued,
    mostLogprobs: server.max_top_logprobs,
    changed: (text) => {
      const isShown = mine.conversation === conversation;
      if (isShown) announcer.hear(text);
      if (isDrawn && isShown) {
        isDrawn = false;
        requestAnimationFrame(() => {
          isDrawn = true;
          if (runs.get(mine.conversation.id) !== mine || mine.conversation !== conversation) return;
          mine.view.update(true);
          scrollDown();
        });
      }
      if (performance.now() - saved > SAVE_EVERY_MS) {
        saved = performance.now();
        save(mine.conversation);
      }
    },
  });
  runs.delete(mine.conversation.id);
  if (await store.get(mine.conversation.id)) await save(mine.conversation); // else it was deleted meanwhile
  refreshList();
  if (mine.conversation === conversation) {
    mine.view.update(false);
    showRunning();
    scrollDown();
    announcer.finish(error ? (message.finish === "stopped" ? "Stopped." : "") : "The answer is complete.");
  }
  if (error?.status === 401) await connect(error.message);
}

function stop() {
  runs.get(conversation.id)?.controller.abort();
}

// The server ----------------------------------------------------------------------------------------------------------

async function connect(problem = "") {
  let isWaiting = false;
  for (;;) {
    try {
      if (problem) {
        const key = await askKey(problem);
        if (key === null) return showBanner("Without a key the server answers nothing.", () => connect(problem));
        setKey(key);
      }
      [models, server] = await Promise.all([listModels(), readSettings()]);
      if (isWaiting) showBanner(store.problem); // and nothing else that was said meanwhile
      break;
    } catch (error) {
      problem = error.status === 401 ? error.message : "";
      if (problem) continue;
      if (error.code !== "model_loading") return showBanner(error.message, () => connect());
      isWaiting = true;
      showBanner("The model is loading…");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  panel.serve(server);
  showModels();
  const { max_model_len: length } = models[0] ?? {};
  at("about").textContent = `Puna ${server.version}. The context of ${server.model} holds ${length} tokens.`;
  if (!hasMessages()) show();
}

// Panels, keys, themes --------------------------------------------------------------------------------------------------

const isNarrow = () => matchMedia("(max-width: 60rem)").matches;

function togglePanel(name, isOpen) {
  const node = at(name);
  node.hidden = !isOpen;
  at(`open-${name}`).setAttribute("aria-expanded", String(isOpen));
  document.body.classList.toggle(`with-${name}`, isOpen);
  if (isNarrow()) at("middle").inert = isOpen;
  if (isOpen && name === "settings") fit(at("system"));
}

function closeDrawer() {
  if (isNarrow()) togglePanel("conversations", false);
}

for (const name of ["conversations", "settings"]) {
  at(`open-${name}`).addEventListener("click", () => {
    togglePanel(name, at(name).hidden);
    if (!at(name).hidden) at(`close-${name}`).focus();
  });
  at(`close-${name}`).addEventListener("click", () => {
    togglePanel(name, false);
    at(`open-${name}`).focus();
  });
}

matchMedia("(max-width: 60rem)").addEventListener("change", () => {
  at("middle").inert = false;
  togglePanel("conversations", !isNarrow());
  togglePanel("settings", false);
});

const THEMES = ["system", "light", "dark"];

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "system";
  at("theme").textContent = `Theme: ${theme}`;
  at("theme").setAttribute("aria-label", `Theme: ${theme === "system" ? "as the system" : theme}`);
}

at("theme").addEventListener("click", () => {
  const now = THEMES.indexOf(document.documentElement.dataset.theme ?? "system");
  const theme = THEMES[(now + 1) % THEMES.length];
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  remember("theme", theme === "system" ? null : theme);
  showTheme();
});

at("new").addEventListener("click", () => {
  closeDrawer();
  startConversation();
});
at("export-all").addEventListener("click", async () => download(await store.list()));
at("import").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async ({ target }) => {
  if (target.files.length) await importFile(target.files[0]);
  target.value = "";
});
at("model").addEventListener("change", ({ target }) => {
  conversation.settings.model = target.value;
  panel.changed(conversation.settings);
});
at("stop").addEventListener("click", stop);
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (runs.has(conversation.id) || !prompt.value.trim() || !canSend()) return;
  send(prompt.value);
  prompt.value = "";
  fit(prompt);
});
prompt.addEventListener("input", () => fit(prompt));
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (closeMenus(at("list"))) return;
  const open = ["settings", "conversations"].find((name) => !at(name).hidden && (isNarrow() || at(name).contains(event.target)));
  if (open && (open === "settings" || isNarrow())) at(`close-${open}`).click();
  else stop();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("#list .menu, #list .icon-button")) closeMenus(at("list"));
});
thread.addEventListener("scroll", () => {
  isAtEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 40;
  at("down").hidden = isAtEnd;
});
at("down").addEventListener("click", () => {
  isAtEnd = true;
  scrollDown();
  prompt.focus();
});
tabs?.addEventListener("message", async ({ data }) => {
  if (data === conversation?.id && !runs.has(data)) {
    const found = await store.get(data);
    if (found) conversation = found;
    else startConversation();
    if (found) show();
  }
  refreshList();
});

store = await Store.open();
showTheme();
togglePanel("conversations", !isNarrow());
const wanted = location.hash.slice(1);
if (wanted && (await store.get(wanted))) await openConversation(wanted);
else await startConversation();
if (store.problem) showBanner(store.problem);
await connect();
