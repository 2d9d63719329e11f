// Bytes as people read and type them: text, JSON, hex, base64. What was not changed comes back as
// the same bytes; where a form cannot promise that, it says so and is not taken.

export const forms = ["text", "json", "hex", "base64"];
const hexPerLine = 16;
const base64PerLine = 76;

// How to show bytes at first.
export function formFor(bytes) {
  if (whyNotText(bytes)) return "hex";
  const text = decoded(bytes).trim();
  if (!/^[[{]/.test(text)) return "text";
  return whyNotJson(text) ? "text" : "json";
}

// What keeps bytes from being shown as text, or nothing.
export function whyNotText(bytes) {
  const text = decoded(bytes);
  if (text === null) return "These bytes are not UTF-8: look at them as hex or base64.";
  if (text.includes("\r") && lineEndOf(text) === null) {
    return "It has line ends of several kinds, which a text field would make one: look at it as hex or base64.";
  }
  return "";
}

// The text of bytes in a form, and what its line ends were. Throws an Error with words for people.
export function shownAs(form, bytes) {
  if (form === "hex") return { text: hexOf(bytes), lineEnd: "\n" };
  if (form === "base64") return { text: base64Of(bytes), lineEnd: "\n" };
  const why = whyNotText(bytes);
  if (why) throw new Error(why);
  const text = decoded(bytes);
  return { text, lineEnd: lineEndOf(text) ?? "\n" };
}

// The bytes that a text in a form means. Throws an Error with words for people.
export function bytesOf(form, text, lineEnd = "\n") {
  if (form === "hex") return ofHex(text);
  if (form === "base64") return ofBase64(text);
  if (form === "json") {
    const why = whyNotJson(text);
    if (why) throw new Error(why);
  }
  if (/\p{Surrogate}/u.test(text)) throw new Error("It has half of a character, which UTF-8 has no bytes for.");
  const asWas = lineEnd === "\n" ? text : text.replaceAll("\n", lineEnd);
  return new TextEncoder().encode(asWas);
}

export function whyNotJson(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `This is not JSON: ${error.message}`;
  }
}

// JSON with line breaks and indents; numbers and strings stay as they are written.
export function tidied(text) {
  let out = "";
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+/g) ?? [];
  tokens.forEach((token, at) => {
    const before = tokens[at - 1];
    if (token === "}" || token === "]") {
      depth -= 1;
      out += before === "{" || before === "[" ? token : line() + token;
    } else if (token === ":") out += ": ";
    else if (token === ",") out += `,${line()}`;
    else {
      if (before === "{" || before === "[") out += line();
      out += token;
      if (token === "{" || token === "[") depth += 1;
    }
  });
  return out;
}

function decoded(bytes) {
  try {
    // A mark at the beginning belongs to the value, too.
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

// The one line end of a text; null if there are several kinds.
function lineEndOf(text) {
  if (!text.includes("\r")) return "\n";
  return /\r(?!\n)|(?<!\r)\n/.test(text) ? null : "\r\n";
}

function hexOf(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += hexPerLine) {
    const some = bytes.subarray(at, at + hexPerLine);
    lines.push(Array.from(some, (byte) => byte.toString(16).padStart(2, "0")).join(" "));
  }
  return lines.join("\n");
}

function ofHex(text) {
  const wrong = text.search(/[^0-9a-fA-F\s]/);
  if (wrong >= 0) throw new Error(`Character ${wrong + 1} is no hexadecimal digit.`);
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2) throw new Error("The last byte has only one digit; each has two.");
  const bytes = new Uint8Array(digits.length / 2);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = parseInt(digits.slice(2 * at, 2 * at + 2), 16);
  return bytes;
}

function base64Of(bytes) {
  let raw = "";
  for (let at = 0; at < bytes.length; at += 32768) {
    raw += String.fromCharCode(...bytes.subarray(at, at + 32768));
  }
  return (btoa(raw).match(new RegExp(`.{1,${base64PerLine}}`, "g")) ?? []).join("\n");
}

function ofBase64(text) {
  const packed = text.replace(/\s+/g, "");
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(packed)) {
    throw new Error("This is not base64: four characters stand for three bytes, and = fills the last.");
  }
  return Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
}
