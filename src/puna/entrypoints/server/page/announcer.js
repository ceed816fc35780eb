// Tells screen readers what comes, a sentence at a time: a live region that changed with each token could not be followed.

const END = /[.!?:]["')\]]*\s|\n/g;

/** Says text in a live region. */
export class Announcer {
  constructor(region) {
    this.region = region;
    this.rest = "";
  }

  /** Takes a piece of a text; says what has become a sentence. */
  hear(text) {
    this.rest += text;
    let end = 0;
    for (const found of this.rest.matchAll(END)) end = found.index + found[0].length;
    if (end) this.say(this.rest.slice(0, end));
    this.rest = this.rest.slice(end);
  }

  /** Says what is left, and then a word of the page's own. */
  finish(text) {
    this.say(this.rest);
    this.rest = "";
    this.say(text);
  }

  say(text) {
    if (!text.trim()) return;
    const line = document.createElement("p");
    line.textContent = text;
    this.region.append(line);
    while (this.region.childNodes.length > 5) this.region.firstChild.remove();
  }
}
