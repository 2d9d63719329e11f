// Deleting many keys: counted first, confirmed by typing, then done 10,000 keys at a time.
import { Job } from "./data_job.js";
import { address, again, count, keys } from "./data_requests.js";

const foundOf = (total) => (total ? `${keys(total)} would be deleted.` : "There is nothing to delete: no key begins so.");
const whole = (text) => text.replace(/[\r\n]/g, "");

export function deletion(dialog) {
  const form = dialog.querySelector("[data-delete-many]");
  const path = form.dataset.deleteMany.replace("/console/data", "");
  const typed = dialog.querySelector("[data-typed]");
  const counted = dialog.querySelector("[data-count]");
  let of = { namespace: "", prefix: "" };
  let total = 0;
  let counting = null;

  const job = new Job(dialog, async (running) => {
    let deleted = 0;
    let cursor = "";
    typed.disabled = true;
    do {
      const answer = await again(address(path, { ...of, cursor }), { method: "POST", signal: running.signal });
      running.changed = true;
      const told = await answer.json();
      deleted += told.deleted;
      cursor = told.cursor;
      running.tell(total ? deleted / total : null, `${keys(deleted)} deleted of about ${count(Math.max(total, deleted))}`);
    } while (cursor);
    return `${keys(deleted)} deleted. What is put meanwhile stays.`;
  });

  const check = () => {
    const wanted = whole(of[typed.dataset.typed]);
    job.go.disabled = Boolean(job.running) || total === 0 || typed.value !== wanted;
  };
  typed.addEventListener("input", check);
  dialog.addEventListener("close", () => counting?.abort());

  async function countAll() {
    counting?.abort();
    const mine = (counting = new AbortController());
    let cursor = "";
    total = 0;
    counted.textContent = "Counting …";
    try {
      do {
        const answer = await again(address("/count", { ...of, cursor }), { signal: mine.signal });
        const told = await answer.json();
        total += told.matched;
        cursor = told.cursor;
        counted.textContent = cursor ? `${keys(total)} and more …` : foundOf(total);
        check();
      } while (cursor);
    } catch (error) {
      if (error.name !== "AbortError") counted.textContent = `They cannot be counted: ${error.message}`;
    }
  }

  // `known` is how many there are, where that is known.
  return (namespace, prefix, known) => {
    of = { namespace, prefix };
    typed.value = "";
    typed.disabled = false;
    job.reset();
    if (known === undefined) countAll();
    else {
      // Also without keys a namespace can be declared.
      total = Math.max(known, 1);
      counted.textContent = `It has ${keys(known)}.`;
    }
    check();
  };
}
