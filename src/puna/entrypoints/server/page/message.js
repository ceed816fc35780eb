// One message on the page: its text, what is known about it, and what can be done with it.

import { copy, element, fit, icon, iconButton, textButton } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { showTokens } from "./tokens.js";

const NOTES = {
  length: "The limit of tokens is reached.",
  stopped: "Stopped.",
  tool_calls: "The model wants to call a tool; this page has none.",
};

/**
 * The view of a message.
 *
 * @param actions What its buttons do: `again`, `proceed`, `edit(text)`, `choose(step)`, `tokens()`, which gives the
 *     tokens with their probabilities, and `retry`.
 */
export class MessageView {
  constructor(message, { place, count, isRunning, actions }) {
    this.message = message;
    this.actions = actions;
    this.isUser = message.role === "user";
    this.content = element("div", { class: "content" });
    this.reasoning = element("div", { class: "content faint" });
    this.fold = this.isUser ? null : element("details", { class: "reasoning" }, element("summary"), this.reasoning);
    this.note = element("p", { class: "note", hidden: true });
    this.error = element("div", { class: "error", role: "alert", hidden: true });
    this.stats = element("span", { class: "stats" });
    this.extra = element("div");
    this.foot = element("div", { class: "foot" }, ...this.#buttons(place, count), this.stats);
    const who = this.isUser ? "You" : message.model || "Answer";
    this.node = element(
      "article",
      { class: `message ${message.role}`, "aria-label": who, id: `message-${message.id}` },
      this.isUser ? null : element("h2", { class: "who", text: who }),
      this.fold,
      this.content,
      this.note,
      this.error,
      this.foot,
      this.extra,
    );
    this.update(isRunning);
  }

  /** Shows the message as it is now. */
  update(isRunning) {
    const { message } = this;
    this.node.classList.toggle("running", isRunning);
    this.node.setAttribute("aria-busy", String(isRunning));
    if (this.isUser) this.content.textContent = message.content;
    else showMarkdown(this.content, message.content);
    if (this.fold) this.fold.hidden = !message.reasoning;
    if (this.fold && message.reasoning) {
      this.fold.firstChild.textContent = isRunning && !message.content ? "Reasoning…" : "Reasoning";
      showMarkdown(this.reasoning, message.reasoning);
    }
    const text = isRunning ? "" : (NOTES[message.finish] ?? "");
    this.note.hidden = !text;
    const canProceed = message.content && (message.finish === "length" || message.finish === "stopped");
    this.note.replaceChildren(text, canProceed ? textButton("Continue", () => this.actions.proceed()) : "");
    this.error.hidden = !message.error || isRunning;
    this.error.replaceChildren();
    if (message.error && !isRunning) {
      this.error.append(
        element("p", { text: message.error }),
        textButton("Try again", () => this.actions.retry(), { class: "button retry" }),
      );
    }
    this.stats.textContent = statsOf(message);
    for (const button of this.foot.querySelectorAll("button")) button.disabled = isRunning;
    if (isRunning) this.extra.replaceChildren();
  }

  #buttons(place, count) {
    const buttons = [];
    if (count > 1) {
      buttons.push(
        iconButton("left", "Version before", () => this.actions.choose(-1), { "aria-disabled": place === 0 ? "true" : null }),
        element("span", { class: "place", text: `${place + 1} / ${count}`, "aria-label": `Version ${place + 1} of ${count}` }),
        iconButton("right", "Version after", () => this.actions.choose(1), {
          "aria-disabled": place === count - 1 ? "true" : null,
        }),
      );
    }
    const copying = iconButton("copy", "Copy the text", () => copy(this.message.content, copying));
    buttons.push(copying, iconButton("edit", "Edit", () => this.#edit()));
    if (!this.isUser) {
      buttons.push(
        iconButton("again", "Answer again", () => this.actions.again()),
        iconButton("chart", "Token probabilities", (event) => this.#toggleTokens(event.currentTarget), {
          "aria-expanded": "false",
        }),
      );
    }
    return buttons;
  }

  #edit() {
    if (this.node.classList.contains("editing")) return;
    const field = element("textarea", { rows: 1, "aria-label": this.isUser ? "Your message" : "The answer" });
    field.value = this.message.content;
    const end = () => {
      this.node.classList.remove("editing");
      form.remove();
      this.foot.querySelector("[aria-label=Edit]").focus();
    };
    const save = () => {
      const text = field.value;
      if (!text.trim()) return;
      end();
      this.actions.edit(text);
    };
    const form = element(
      "form",
      { class: "editor", on: { submit: (event) => (event.preventDefault(), save()) } },
      field,
      element("button", { type: "submit", class: "button strong", text: this.isUser ? "Send" : "Save" }),
      textButton("Cancel", end),
    );
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
      } else if (event.key === "Enter" && (this.isUser ? !event.shiftKey : event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        save();
      }
    });
    this.node.classList.add("editing");
    this.content.after(form);
    fit(field);
    field.focus();
  }

  async #toggleTokens(button) {
    if (this.extra.hasChildNodes()) {
      this.extra.replaceChildren();
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.setAttribute("aria-expanded", "true");
    const waiting = element("p", { class: "hint", text: "Computing the probabilities of this text…" });
    this.extra.append(waiting);
    try {
      const tokens = await this.actions.tokens();
      if (waiting.isConnected) waiting.replaceWith(showTokens(tokens));
      this.extra.scrollIntoView({ block: "nearest" });
    } catch (error) {
      waiting.textContent = error.message;
      waiting.className = "error";
    }
  }
}

function statsOf({ usage }) {
  if (!usage?.generated) return "";
  const parts = [`${usage.generated} ${usage.generated === 1 ? "token" : "tokens"}`];
  if (usage.counted > 0 && usage.seconds > 0) parts.push(`${(usage.counted / usage.seconds).toFixed(1)} tokens/s`);
  if (usage.first !== undefined) parts.push(`first after ${usage.first.toFixed(2)} s`);
  if (usage.prompt !== undefined) parts.push(`${usage.cached} of ${usage.prompt} prompt tokens cached`);
  return parts.join(" · ");
}

/** What an empty conversation shows. */
export function welcome(model, ideas, take) {
  return element(
    "div",
    { class: "welcome" },
    icon("drop"),
    element("h2", { text: "What shall it be?" }),
    element("p", { class: "hint", text: model ? `You talk to ${model}, on this server. Nothing leaves it.` : "" }),
    element("div", { class: "ideas" }, ...ideas.map((idea) => textButton(idea, () => take(idea)))),
  );
}
