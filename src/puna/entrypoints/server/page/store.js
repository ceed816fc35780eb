// Conversations in this browser: in IndexedDB, or in memory where that cannot be used.

const NAME = "puna";
const TABLE = "conversations";

/** What keeps conversations. `problem` is a sentence where they are lost when the page is closed. */
export class Store {
  #database = null;
  #memory = new Map();
  problem = "";

  /** Opens the store; never fails. */
  static async open() {
    const store = new Store();
    try {
      store.#database = await opened();
      store.#database.onversionchange = () => store.#database.close();
    } catch {
      store.problem = "This browser lets the page keep nothing: conversations are lost when it is closed.";
    }
    return store;
  }

  /** All conversations, the latest first. */
  async list() {
    const found = this.#database ? await done(this.#table("readonly").getAll()) : [...this.#memory.values()];
    return found.filter((one) => one?.id && one.messages).sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    return this.#database ? done(this.#table("readonly").get(id)) : this.#memory.get(id);
  }

  /** Keeps a conversation. Throws an Error with a sentence if there is no room for it. */
  async put(conversation) {
    if (!this.#database) {
      this.#memory.set(conversation.id, structuredClone(conversation));
      return;
    }
    try {
      await done(this.#table("readwrite").put(conversation));
    } catch (error) {
      const isFull = error?.name === "QuotaExceededError";
      throw new Error(
        isFull
          ? "This browser has no more room: export conversations and delete some, or the latest are lost when the page is closed."
          : "This browser could not keep the conversation: it is lost when the page is closed.",
      );
    }
  }

  async delete(id) {
    if (this.#database) await done(this.#table("readwrite").delete(id));
    else this.#memory.delete(id);
  }

  #table(mode) {
    return this.#database.transaction(TABLE, mode).objectStore(TABLE);
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}

// A write that was begun can still be refused when its transaction ends: it is done only then.
function done(request) {
  return new Promise((resolve, reject) => {
    const { transaction } = request;
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error ?? request.error);
    transaction.onerror = () => reject(request.error);
  });
}

/** A small value that is kept beside the conversations; null if there is none. */
export function remembered(name) {
  try {
    return localStorage.getItem(`puna.${name}`);
  } catch {
    return null;
  }
}

/** Keeps a small value, or forgets it (null). */
export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(`puna.${name}`);
    else localStorage.setItem(`puna.${name}`, value);
  } catch {
    // Storage is switched off or full: the value lasts as long as the page.
  }
}
