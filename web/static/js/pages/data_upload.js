// Upload: a file of JSON lines, read here and sent some at a time. Items of one key are put in the
// order of their lines.
import { bytesOf } from "./data_bytes.js";
import { Job } from "./data_job.js";
import { itemOf, linesOf } from "./data_lines.js";
import { address, again, count, keys, putting } from "./data_requests.js";

// As much as one signed request of the platform's may have, and not more items than a second's.
const batch_bytes_max = 56 * 1024;
const batch_items_max = 500;
const shown_max = 100;
const rounds_max = 8;

class Upload {
  constructor(namespace, job) {
    this.namespace = namespace;
    this.job = job;
    this.batch = [];
    this.size = 0;
    this.put = 0;
    this.refused = [];
    this.refusedCount = 0;
  }

  refuse(line, detail, key = "") {
    this.refusedCount += 1;
    if (this.refused.length < shown_max) this.refused.push({ line, detail, key });
  }

  async take(line, text) {
    let item;
    try {
      item = itemOf(text);
    } catch (error) {
      this.refuse(line, error.message);
      return;
    }
    const size = new TextEncoder().encode(JSON.stringify({ line, ...item })).length;
    // In a batch a value has no metadata, and a large one has no room.
    if (item.metadata !== undefined || item.content_type !== undefined || size > batch_bytes_max / 2) {
      await this.flush();
      await this.putAlone(line, item);
      return;
    }
    if (this.batch.length === batch_items_max || this.size + size > batch_bytes_max) await this.flush();
    this.batch.push({ line, ...item });
    this.size += size;
  }

  async flush() {
    let items = this.batch;
    this.batch = [];
    this.size = 0;
    for (let round = 1; items.length; round += 1) {
      const told = await this.send(items);
      this.put += told.put;
      if (told.put) this.job.changed = true;
      const later = new Set();
      for (const one of told.refused) {
        if (one.again && round < rounds_max) later.add(one.line);
        else this.refuse(one.line, one.detail, one.key);
      }
      items = items.filter((item) => later.has(item.line));
      if (items.length) await new Promise((resolve) => setTimeout(resolve, 1000 * round));
      this.job.signal.throwIfAborted();
    }
  }

  async send(items) {
    const answer = await again(
      address("/import", { namespace: this.namespace }),
      {
        method: "POST",
        body: JSON.stringify({ items }),
        headers: { "Content-Type": "application/json" },
        signal: this.job.signal,
      },
      () => this.job.tell(null, `${keys(this.put)} put so far; waiting for the service`),
    );
    return answer.json();
  }

  async putAlone(line, item) {
    try {
      const bytes = item.value === undefined ? bytesOf("base64", item.value_base64) : bytesOf("text", item.value);
      const members = { key: item.key, namespace: this.namespace, ttl: item.ttl, expires_at: item.expires_at };
      members.content_type = item.content_type;
      if (item.metadata !== undefined) members.metadata = JSON.stringify(item.metadata);
      const [path, options] = putting(members, bytes);
      await again(path, { ...options, signal: this.job.signal }, () =>
        this.job.tell(null, `${keys(this.put)} put so far; waiting for the service`),
      );
      this.put += 1;
      this.job.changed = true;
    } catch (error) {
      if (error.name === "AbortError" || error.status >= 500 || error.status === 401) throw error;
      this.refuse(line, error.message, item.key);
    }
  }
}

export function upload(dialog) {
  const input = dialog.querySelector("[type=file]");
  const list = dialog.querySelector("[data-refused]");
  let namespace = "";

  const job = new Job(dialog, async (running) => {
    const file = input.files[0];
    const doing = new Upload(namespace, running);
    let read = 0;
    list.hidden = true;
    input.disabled = true;
    try {
      for await (const { number, text } of linesOf(file, (bytes) => (read += bytes))) {
        running.signal.throwIfAborted();
        if (!text) continue;
        const before = doing.put;
        await doing.take(number, text);
        if (doing.put !== before) running.tell(read / file.size, `${keys(doing.put)} put`);
      }
      await doing.flush();
    } finally {
      input.disabled = false;
      show(list, doing);
      running.words.textContent = `${keys(doing.put)} put`;
    }
    const lines = doing.refusedCount;
    return `${keys(doing.put)} put${lines ? `, ${count(lines)} ${lines === 1 ? "line" : "lines"} refused` : ""}.`;
  });

  return (of) => {
    namespace = of;
    job.reset();
    job.go.disabled = false;
    input.value = "";
    list.hidden = true;
  };
}

function show(list, doing) {
  list.hidden = !doing.refusedCount;
  const more = doing.refusedCount > doing.refused.length ? `, the first ${doing.refused.length} of them here` : "";
  list.querySelector("summary").textContent = `Lines that were refused: ${count(doing.refusedCount)}${more}`;
  list.querySelector("ol").replaceChildren(
    ...doing.refused.map(({ line, detail, key }) => {
      const row = document.createElement("li");
      row.value = line;
      row.textContent = key ? `${key.slice(0, 80)}: ${detail}` : detail;
      return row;
    }),
  );
}
