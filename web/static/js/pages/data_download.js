// Download: pages of JSON lines, put together here and kept as one file.
import { sizeOf } from "../size.js";
import { Job } from "./data_job.js";
import { address, again, keys } from "./data_requests.js";

export function download(dialog) {
  let of = { namespace: "", prefix: "" };
  let total = 0;

  const job = new Job(dialog, async (running) => {
    const parts = [];
    let found = 0;
    let bytes = 0;
    let cursor = "";
    if (of.prefix) total = await counted(of, running.signal);
    do {
      const answer = await again(address("/export", { ...of, cursor }), { signal: running.signal }, () =>
        running.tell(null, `${keys(found)} so far; waiting for the service`),
      );
      const part = await answer.blob();
      parts.push(part);
      bytes += part.size;
      found += Number(answer.headers.get("X-Count"));
      cursor = answer.headers.get("X-Cursor");
      running.tell(total ? found / total : null, `${keys(found)}, ${sizeOf(bytes)}`);
    } while (cursor);
    keep(new Blob(parts, { type: "application/x-ndjson" }), nameOf(of));
    return `${keys(found)}, ${sizeOf(bytes)}: the browser has the file.`;
  });

  return (namespace, prefix, known) => {
    of = { namespace, prefix };
    total = known;
    job.reset();
    job.go.disabled = false;
    for (const each of dialog.querySelectorAll("[data-with-prefix]")) each.hidden = !prefix;
  };
}

// How many there are to come, as far as one question tells; 0 for more than that.
async function counted(of, signal) {
  const told = await (await again(address("/count", of), { signal })).json();
  return told.cursor ? 0 : told.matched;
}

function nameOf({ namespace, prefix }) {
  const words = [namespace, prefix].filter(Boolean).join("-");
  return `${words.replace(/[^A-Za-z0-9._-]+/g, "_").replace(/^[._]+/, "").slice(0, 80) || "keys"}.ndjson`;
}

function keep(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
