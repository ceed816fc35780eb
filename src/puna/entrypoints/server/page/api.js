// The server's interface: keys, errors as one sentence, and answers as they come.

const KEY = "puna.key";
let key = readKey();

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** Keeps the key until the tab is closed. */
export function setKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // Kept in memory, then: until the page is loaded again.
  }
}

/** What the server refused, or that it cannot be reached. `status` is 0 where there was no answer. */
export class ServerError extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.name = "ServerError";
    this.status = status;
    this.code = code;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.");
  }
  if (response.ok) return response;
  let found = {};
  try {
    found = (await response.json()).error ?? {};
  } catch {
    // Not the server's own: a proxy's page, perhaps.
  }
  const sentence = typeof found.message === "string" ? found.message : `The server answered with status ${response.status}.`;
  throw new ServerError(sentence, response.status, String(found.code ?? ""));
}

/** The names of the models and adapters that can be asked. */
export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/** What a request without sampling values gets, and the ranges of those. */
export async function readSettings() {
  return (await call("page/settings")).json();
}

function post(path, body, signal) {
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: written(body), signal });
}

// A seed has up to 64 bits, more than a number here can hold: it is kept as text.
function written({ seed, ...body }) {
  const text = JSON.stringify(body);
  return seed === undefined ? text : `${text.slice(0, -1)},"seed":${seed}}`;
}

/**
 * Asks for an answer; yields `{content, reasoning, count, tokens, finish, seed, usage}`: what is
 * new. `count` is a number of tokens, `tokens` are their log-probabilities.
 * Ending the loop, or aborting by `signal`, closes the connection: the server then ends its work.
 */
export async function* streamChat(body, signal) {
  const response = await post(
    "v1/chat/completions",
    { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  );
  let isWhole = false;
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") {
      isWhole = true; // and the server closes the connection
      continue;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.message, 200, String(event.error.code ?? ""));
    if (event.usage) yield { usage: event.usage };
    const choice = event.choices?.[0];
    if (!choice) continue;
    const news = {};
    if (choice.delta?.content) news.content = choice.delta.content;
    const reasoning = choice.delta?.reasoning_content ?? choice.delta?.reasoning;
    if (reasoning) news.reasoning = reasoning;
    if (choice.logprobs?.content?.length) news.tokens = choice.logprobs.content;
    if (choice.token_ids?.length) news.count = choice.token_ids.length;
    if (choice.finish_reason) news.finish = choice.finish_reason;
    const seed = /"seed":(\d+)/.exec(choice.finish_reason ? data.slice(data.lastIndexOf('"finish_reason"')) : "");
    if (seed) news.seed = seed[1];
    yield news;
  }
  if (!isWhole) throw new ServerError("The connection broke before the answer was complete.");
}

/** The data of each event of a stream; comments, which only keep the connection, are left out. */
export async function* serverSentEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof TypeError) throw new ServerError("The connection broke before the answer was complete.");
    throw error;
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/**
 * The log-probabilities of a text that is there already, as the answer to `messages`.
 * Returns its tokens in the form in which answers have them.
 */
export async function scoreText(model, messages, text, count, signal) {
  const asked = {
    model,
    messages: [...messages, { role: "assistant", content: text }],
    add_generation_prompt: false,
    continue_final_message: true,
    prompt_logprobs: count,
    return_token_ids: true,
    temperature: 0,
    max_tokens: 1,
  };
  const read = (response) => response.json();
  const before = await post("v1/chat/completions/render", { model, messages }, signal).then(read);
  const answer = await post("v1/chat/completions", asked, signal).then(read);
  const ids = answer.choices[0].prompt_token_ids;
  let begin = 0; // of the text: where the prompt that asks for it ends
  while (begin < ids.length && ids[begin] === before.prompt_token_ids[begin]) begin += 1;
  return ids.slice(begin).map((id, index) => {
    const position = answer.prompt_logprobs[begin + index] ?? {};
    const entry = ({ decoded_token: token, logprob, rank }) => ({ token, logprob, rank, bytes: null });
    const likeliest = Object.values(position).sort((a, b) => a.rank - b.rank).filter((value) => value.rank <= count);
    return { ...entry(position[id]), top_logprobs: likeliest.map(entry) };
  });
}
