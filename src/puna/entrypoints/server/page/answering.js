// Answers under way: what a message asks for, and what comes of it.

import { streamChat } from "./api.js";
import { asked } from "./conversation.js";

const FIELDS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty"];

/** How many likeliest tokens are recorded at each place. */
export const NUM_LIKELIEST = 5;

/** The sampling values of a conversation's settings, as requests have them; those that are empty are left out. */
export function samplingOf(settings) {
  const values = {};
  for (const name of FIELDS) if (settings[name]) values[name] = Number(settings[name]);
  if (settings.seed) values.seed = settings.seed;
  return values;
}

/**
 * Has a message answered, or an answer continued, into `message`, which grows meanwhile and says what model is asked.
 * Ends normally whatever happens: what went wrong is in `message.error`, being stopped in `message.finish`.
 *
 * @param changed Called after each piece with what is new of the text.
 * @param isContinued The message has a beginning already.
 */
export async function answer(conversation, message, { signal, changed, isContinued, mostLogprobs }) {
  const { settings } = conversation;
  const before = isContinued && message.usage ? message.usage : { generated: 0, seconds: 0 };
  const body = { model: message.model, ...samplingOf(settings), messages: asked(conversation, message.parent), return_token_ids: true };
  if (isContinued) {
    body.messages.push({ role: "assistant", content: message.content });
    Object.assign(body, { add_generation_prompt: false, continue_final_message: true });
  }
  const records = settings.records && mostLogprobs > 0;
  if (records) Object.assign(body, { logprobs: true, top_logprobs: Math.min(NUM_LIKELIEST, mostLogprobs) });
  if (!records || (isContinued && !message.tokens)) delete message.tokens;
  else message.tokens ??= [];
  Object.assign(message, { finish: "", usage: { generated: 0, seconds: 0 } });
  delete message.error;
  const begin = performance.now();
  let first = null;
  let generated = 0;
  try {
    for await (const news of streamChat(body, signal)) {
      if (news.count) {
        first ??= { at: performance.now(), count: news.count };
        generated += news.count;
        message.usage.generated = before.generated + generated;
        // The first tokens came with the prompt: speed is measured after them.
        message.usage.seconds = before.seconds + (performance.now() - first.at) / 1000;
        message.usage.counted = (before.counted ?? 0) + generated - first.count;
        message.usage.first = before.first ?? (first.at - begin) / 1000;
      }
      if (news.content) message.content += news.content;
      if (news.reasoning) message.reasoning = (message.reasoning ?? "") + news.reasoning;
      if (news.tokens && message.tokens) message.tokens.push(...news.tokens.map(compact));
      if (news.finish) message.finish = news.finish;
      if (news.seed) message.seed = news.seed;
      if (news.usage) {
        message.usage.prompt = news.usage.prompt_tokens;
        message.usage.generated = before.generated + news.usage.completion_tokens;
        message.usage.cached = news.usage.prompt_tokens_details?.cached_tokens ?? 0;
      }
      changed(news.content ?? "");
    }
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) message.finish = "stopped";
    else Object.assign(message, { error: error.message, finish: "error" });
    if (error.name !== "AbortError" && error.name !== "ServerError" && !signal.aborted) console.error(error);
    return error;
  }
  return null;
}

// Bytes are kept only where the text does not show them.
function compact({ token, logprob, bytes, top_logprobs: likeliest = [] }) {
  const entry = (one) => ({
    token: one.token,
    logprob: one.logprob,
    ...(one.token.includes("\ufffd") && one.bytes ? { bytes: one.bytes } : {}),
  });
  return { ...entry({ token, logprob, bytes }), top_logprobs: likeliest.map(entry) };
}
