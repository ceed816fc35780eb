// The panel of a conversation's settings: system prompt, sampling, what is recorded.

import { element, fit } from "./dom.js";

const LABELS = {
  temperature: ["Temperature", "0 takes the likeliest token always"],
  top_p: ["Top p", "only the likeliest tokens that together have this probability"],
  top_k: ["Top k", "only so many of the likeliest tokens"],
  min_p: ["Min p", "only tokens at least this many times as likely as the likeliest"],
  repetition_penalty: ["Repetition penalty", "above 1 makes tokens less likely that were there before"],
  max_tokens: ["Max tokens", "of an answer"],
  seed: ["Seed", "the same seed gives the same answer"],
};
const NOTHING = { top_k: "all", max_tokens: "what the context holds", seed: "drawn anew" };

/** The panel. `changed` is called with the settings after each change. */
export class SettingsPanel {
  constructor(changed) {
    this.changed = changed;
    this.settings = {};
    this.form = document.getElementById("settings-form");
    this.system = document.getElementById("system");
    this.records = document.getElementById("records");
    this.fields = {};
    for (const [name, [label, hint]] of Object.entries(LABELS)) {
      const field = element("input", { type: "text", inputmode: "decimal", id: `sampling-${name}`, autocomplete: "off" });
      field.setAttribute("aria-describedby", `hint-${name}`);
      field.addEventListener("input", () => this.#read(name, field));
      this.fields[name] = field;
      document.getElementById("sampling").append(
        element(
          "div",
          { class: "row" },
          element("label", { for: field.id, text: label }),
          field,
          element("p", { class: "hint", id: `hint-${name}`, text: hint }),
        ),
      );
    }
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.system.addEventListener("input", () => {
      fit(this.system);
      this.#set("system", this.system.value);
    });
    this.records.addEventListener("change", () => this.#set("records", this.records.checked));
    document.getElementById("reset").addEventListener("click", () => {
      for (const name of Object.keys(LABELS)) delete this.settings[name];
      this.show(this.settings);
      this.changed(this.settings);
    });
  }

  /** Takes note of what the server does with a request that states nothing, and of the ranges of values. */
  serve({ defaults, ranges, max_top_logprobs: mostLogprobs }) {
    this.ranges = ranges;
    for (const [name, field] of Object.entries(this.fields)) {
      const value = defaults[name];
      const isNone = value === null || (name === "top_k" && value < 1);
      field.placeholder = isNone ? NOTHING[name] : String(value);
    }
    this.records.disabled = mostLogprobs < 1;
    this.show(this.settings);
  }

  /** Shows the settings of a conversation. */
  show(settings) {
    this.settings = settings;
    this.system.value = settings.system ?? "";
    this.records.checked = Boolean(settings.records);
    for (const [name, field] of Object.entries(this.fields)) {
      field.value = settings[name] ?? "";
      field.setCustomValidity(this.#problem(name, field.value));
    }
  }

  /** The first field whose value cannot be sent, or null. */
  get wrong() {
    return Object.values(this.fields).find((field) => !field.validity.valid) ?? null;
  }

  #read(name, field) {
    const text = field.value.trim();
    field.setCustomValidity(this.#problem(name, text));
    this.#set(name, text);
  }

  #problem(name, text) {
    const range = this.ranges?.[name];
    if (!text || !range) return "";
    const isInteger = range.kind === "integer";
    if (!(isInteger ? /^-?\d+$/ : /^-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?$/i).test(text)) {
      return isInteger ? "A whole number, please." : "A number, please.";
    }
    const { low, high, is_low_left_out: isOpen } = range;
    const value = Number(text);
    const isLow = low !== null && (isOpen ? value <= low : value < low);
    const isHigh = high !== null && value > high;
    if (!isLow && !isHigh) return "";
    return `${isOpen ? "Above" : "From"} ${low}${high === null ? "" : ` up to ${high}`}, please.`;
  }

  #set(name, value) {
    if (value === "" || value === false) delete this.settings[name];
    else this.settings[name] = value;
    this.changed(this.settings);
  }
}
