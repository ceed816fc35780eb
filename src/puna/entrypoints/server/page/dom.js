// Small tools for elements. Text becomes text nodes, never markup: the page's policy forbids innerHTML and its like.

const SVG = "http://www.w3.org/2000/svg";

const PATHS = {
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7",
  edit: "M4 20l1-4L16.5 4.5l3 3L8 19z",
  again: "M20 5v5h-5M4 19v-5h5M19.5 10A8 8 0 0 0 5.6 7.6M4.5 14a8 8 0 0 0 13.9 2.4",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  chart: "M5 20v-6M12 20V5M19 20v-9",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  drop: "M12 3c3.4 4.3 6 7.5 6 10.8a6 6 0 0 1-12 0C6 10.5 8.6 7.3 12 3z",
};

/** An element. `attributes`: `class`, `text`, `on` (event -> handler), any attribute; false and null are left out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A small drawing, which screen readers pass over. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  drawing.classList.add("icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

/** A button with a drawing; `label` is what it is called. */
export function iconButton(name, label, press, attributes = {}) {
  return element(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click: press }, ...attributes },
    icon(name),
  );
}

/** A button with a word on it. */
export function textButton(text, press, attributes = {}) {
  return element("button", { type: "button", class: "button", text, on: { click: press }, ...attributes });
}

/** Makes a text field as high as its text. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

/** Copies text; says on the button whether that worked. */
export async function copy(text, button) {
  const before = button.getAttribute("aria-label");
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
    button.replaceChildren(icon("check"));
  } catch {
    said = "This browser does not let the page copy"; // it does so on https:// and on this machine only
  }
  button.setAttribute("aria-label", said);
  button.title = said;
  setTimeout(() => {
    button.setAttribute("aria-label", before);
    button.title = before;
    button.replaceChildren(icon("copy"));
  }, 1600);
}

/** A name that nothing else has. `crypto.randomUUID` is there on https:// and on this machine only. */
export function uniqueName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
