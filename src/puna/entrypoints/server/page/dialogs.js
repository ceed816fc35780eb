// Questions that are put over the page. Each gives an answer once it is closed; null: nothing was wanted.

import { element, textButton } from "./dom.js";

function ask(title, text, body, { accept, isDanger = false, value = () => true }) {
  return new Promise((resolve) => {
    const form = element("form", { method: "dialog" });
    const dialog = element("dialog", { "aria-labelledby": "question" }, form);
    let result = null;
    form.append(
      element("h2", { id: "question", text: title }),
      ...(text ? [element("p", { text })] : []),
      ...body,
      element(
        "div",
        { class: "choices" },
        textButton("Cancel", () => dialog.close()),
        element("button", { type: "submit", class: `button strong${isDanger ? " danger" : ""}`, text: accept }),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      result = value();
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Whether something may be done. */
export function confirmed(title, text, accept) {
  return ask(title, text, [], { accept, isDanger: true });
}

/** A new name. */
export function askName(title, before) {
  const field = element("input", { type: "text", id: "name", maxlength: 200, autofocus: true });
  field.value = before;
  const label = element("label", { for: "name", text: "Name" });
  return ask(title, "", [label, field], { accept: "Save", value: () => field.value.trim() });
}

/** The key of the server. */
export function askKey(problem) {
  const field = element("input", { type: "password", id: "key", autocomplete: "off", required: true, autofocus: true });
  const label = element("label", { for: "key", text: "Key" });
  const text = `${problem} The key is kept in this tab until it is closed.`;
  return ask("This server asks for a key", text, [label, field], { accept: "Use it", value: () => field.value.trim() });
}
