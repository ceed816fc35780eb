// The list of conversations.

import { titleOf } from "./conversation.js";
import { element, iconButton } from "./dom.js";

/** Shows conversations in `list`; `actions`: `open`, `rename`, `exportOne`, `remove`, each given a conversation. */
export function showList(list, conversations, currentId, runningIds, actions) {
  list.replaceChildren(
    ...conversations.map((conversation) => {
      const title = titleOf(conversation);
      const menu = element(
        "div",
        { class: "menu", hidden: true },
        item("Rename", () => actions.rename(conversation)),
        item("Export", () => actions.exportOne(conversation)),
        item("Delete", () => actions.remove(conversation)),
      );
      const opener = iconButton("more", `More for ${title}`, () => toggle(list, menu, opener), { "aria-expanded": "false" });
      const open = element("button", {
        type: "button",
        class: "open",
        "aria-current": conversation.id === currentId ? "page" : null,
        text: title,
        title,
        on: { click: () => actions.open(conversation.id) },
      });
      if (runningIds.has(conversation.id)) open.append(element("span", { class: "dot", "aria-label": "answering" }));
      return element("li", { "data-id": conversation.id }, open, opener, menu);
    }),
  );
}

function item(text, press) {
  return element("button", { type: "button", class: "quiet", text, on: { click: press } });
}

function toggle(list, menu, opener) {
  const isOpening = menu.hidden;
  closeMenus(list);
  menu.hidden = !isOpening;
  opener.setAttribute("aria-expanded", String(isOpening));
  if (isOpening) menu.firstChild.focus();
}

/** Closes open menus; says whether there was one, whose button then has the focus. */
export function closeMenus(list) {
  let found = false;
  for (const menu of list.querySelectorAll(".menu:not([hidden])")) {
    found = true;
    const isInside = menu.contains(document.activeElement);
    menu.hidden = true;
    menu.previousSibling.setAttribute("aria-expanded", "false");
    if (isInside) menu.previousSibling.focus();
  }
  return found;
}
