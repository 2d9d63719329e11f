// The lines of an upload: each is checked by itself, so that one that is wrong keeps no other out.
const members = new Set(["key", "value", "value_base64", "ttl", "expires_at", "content_type", "metadata"]);
const texts = ["key", "value", "value_base64", "expires_at", "content_type"];
// 1 MiB of control characters, each as \u0000, and what is beside them.
export const line_chars_max = 8 * 1024 * 1024;
const moment = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i;

// The lines of a file with their numbers, while it is read; `read` is told how many bytes were.
export async function* linesOf(file, read) {
  const reader = file.stream().getReader();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  let number = 0;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = done ? "" : lines.pop();
      for (const line of lines) yield { number: (number += 1), text: line.trim() };
      if (done) return;
      if (rest.length > line_chars_max) throw new Error(`line ${number + 1} is longer than any key and value`);
      read(value.length);
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Error(`what comes after line ${number} is not UTF-8`);
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// What a line says to put. Throws an Error with words for people.
export function itemOf(text) {
  let item;
  try {
    item = JSON.parse(text);
  } catch (error) {
    throw new Error(`It is not JSON: ${error.message}`);
  }
  if (item === null || typeof item !== "object" || Array.isArray(item)) {
    throw new Error('It is no object, such as {"key": "a", "value": "1"}');
  }
  for (const name of Object.keys(item)) {
    if (!members.has(name)) throw new Error(`${JSON.stringify(name.slice(0, 40))} is not known here`);
    if (item[name] === null) delete item[name];
  }
  for (const name of texts) {
    if (item[name] !== undefined && !isText(item[name])) throw new Error(`${name} is not text`);
  }
  if (!item.key) throw new Error("It has no key");
  if ((item.value === undefined) === (item.value_base64 === undefined)) {
    throw new Error("It has to have value or value_base64, one of the two");
  }
  if (item.ttl !== undefined && !isText(item.ttl) && !Number.isSafeInteger(item.ttl)) {
    throw new Error("ttl is neither text nor a whole number");
  }
  if (item.ttl !== undefined && item.expires_at !== undefined) throw new Error("It has both ttl and expires_at");
  if (item.expires_at !== undefined && (!moment.test(item.expires_at) || Number.isNaN(Date.parse(item.expires_at)))) {
    throw new Error("expires_at is not such as 2030-01-31T00:00:00Z");
  }
  if (item.metadata !== undefined && !isMetadata(item.metadata)) throw new Error("metadata is no object of texts");
  return item;
}

function isText(value) {
  return typeof value === "string" && !/\p{Surrogate}/u.test(value);
}

function isMetadata(value) {
  return typeof value === "object" && !Array.isArray(value) && Object.values(value).every(isText);
}
