// What the data pages' scripts ask this site for.
import { ask } from "../requests.js";

const root = "/console/data";
const tries_max = 12;
const wait_ms_max = 8000;
// Nothing was done, or to do it twice is no harm to who asks by `again`.
const passing = new Set([429, 502, 503, 504]);

export function address(page, members) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(members)) {
    if (value !== undefined && value !== null && value !== "") query.set(name, value);
  }
  return `${root}${page}?${query}`;
}

// The request that puts a value with what is kept beside it, as the arguments of `ask`. Metadata is
// in a header, which may have ASCII alone, and in no address, which logs have.
export function putting({ metadata, ...members }, bytes) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const headers = metadata ? { "X-Metadata": metadata.replace(/[\u007f-\uffff]/g, escaped) } : {};
  return [address("/value", members), { method: "PUT", body: bytes, headers }];
}

// One step of a job, again and again while it is refused for the moment. `waiting` is told of it.
export async function again(path, options, waiting = () => {}) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await ask(path, options);
    } catch (error) {
      const passes = error.name !== "AbortError" && (passing.has(error.status) || error instanceof TypeError);
      if (!passes || tried === tries_max) throw error;
      waiting(error);
      await pause(Math.min(500 * 2 ** tried, wait_ms_max), options?.signal);
    }
  }
}

function pause(time_ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, time_ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

export const count = (number) => new Intl.NumberFormat("en").format(number);
export const keys = (number) => `${count(number)} ${number === 1 ? "key" : "keys"}`;
