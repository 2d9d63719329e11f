// The page of one key, and the page of a key to be.
import { ask } from "../requests.js";
import { toast } from "../toasts.js";
import { Conflict } from "./data_conflict.js";
import { Editor } from "./data_editor.js";
import { address, putting } from "./data_requests.js";
import { Unsaved } from "./data_unsaved.js";

// What the page says once it is there again.
const said = "data.said";
const page = document.querySelector(".data-key");
const fresh = document.querySelector(".data-new");
if (page) showKey(page);
if (fresh) showNew(fresh);

// All of the page tells of one version, so another one is another page.
function showAnew(words, path = location.href) {
  sessionStorage.setItem(said, words);
  if (path === location.href) location.reload();
  else location.assign(path);
}

if (sessionStorage.getItem(said)) {
  toast(sessionStorage.getItem(said));
  sessionStorage.removeItem(said);
}

function showKey(place) {
  const data = place.dataset;
  const of = { key: decodeURIComponent(data.key), namespace: decodeURIComponent(data.namespace) };
  // A cache takes no conditions: there who comes last wins.
  const isCache = data.kind === "cache";
  const condition = () => (isCache ? "" : data.etag);
  const editor = new Editor(place.querySelector("[data-editor]"), Number(data.valueBytesMax));
  const problem = editor.form.querySelector("[data-problem]");
  const unsaved = new Unsaved(() => editor.isChanged);
  const conflict = new Conflict(document.getElementById("conflict"), {
    keepMine: (etag, expiresAt) => save(etag, expiresAt),
    takeTheirs: () => {
      unsaved.forget();
      location.reload();
    },
  });

  async function load() {
    const part = (name) => place.querySelector(`[data-${name}]`);
    part("large").hidden = true;
    part("waiting").hidden = false;
    try {
      const answer = await ask(address("/value", { ...of, consistency: data.consistency }));
      // Under the version that the page tells of: if this is another one, saving says so.
      editor.set(new Uint8Array(await answer.arrayBuffer()));
      editor.settle();
      part("loaded").hidden = false;
    } catch (error) {
      part("load-problem").textContent = `The value cannot be shown: ${error.message}`;
    }
    part("waiting").hidden = true;
  }

  // `expiresAt` is that of the version which is written over: what is kept is kept of that one.
  async function save(under, expiresAt) {
    const bytes = editor.check();
    const beside = editor.beside(expiresAt);
    if (!bytes || !beside) throw new Error("Mend what is wrong with the value first");
    await ask(...putting({ ...of, ...beside, condition: under }, bytes));
    unsaved.forget();
    showAnew("Saved");
  }

  editor.form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.textContent = "";
    const bytes = editor.check();
    if (!bytes || !editor.beside(data.expiresAt)) {
      editor.form.querySelector("[aria-invalid=true]")?.focus();
      return;
    }
    const button = editor.form.querySelector("[data-save]");
    button.disabled = true;
    try {
      await save(condition(), data.expiresAt);
    } catch (error) {
      if (error.code === "precondition_failed") await conflict.show(of, bytes).catch((why) => editor.refuse(why));
      else editor.refuse(error);
    }
    button.disabled = false;
  });

  place.querySelector("[data-load]")?.addEventListener("click", load);
  if (Number(data.size) <= Number(data.shownBytesMax)) load();
  smallForms(place, of, unsaved);
  deletion(of, condition, unsaved);
}

function smallForms(place, of, unsaved) {
  const buttons = place.querySelectorAll("[data-expiry] button, [data-increment] button");
  const changed = async (path, options, where) => {
    where.textContent = "";
    if (unsaved.isChanged()) {
      where.textContent = "Save what you have changed first: the page is loaded anew after this.";
      return null;
    }
    for (const button of buttons) button.disabled = true;
    try {
      const answer = await ask(path, options);
      return await answer.json();
    } catch (error) {
      where.textContent = error.message;
      for (const button of buttons) button.disabled = false;
      return null;
    }
  };
  const expiry = place.querySelector("[data-expiry]");
  const setExpiry = async (ttl) => {
    const where = document.getElementById("expiry-ttl-problem");
    if (await changed(address("/value", { ...of, ttl }), { method: "PATCH" }, where)) showAnew(ttl === "0" ? "It does not expire any more" : "The expiry was set");
  };
  expiry?.addEventListener("submit", (event) => {
    event.preventDefault();
    setExpiry(document.getElementById("expiry-ttl").value.trim());
  });
  expiry?.querySelector("[data-never]")?.addEventListener("click", () => setExpiry("0"));
  place.querySelector("[data-increment]")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const by = document.getElementById("increment-by").value.replace("+", "");
    const where = document.getElementById("increment-by-problem");
    if (await changed(address("/increment", { ...of, by }), { method: "POST" }, where)) showAnew("Counted");
  });
  for (const button of buttons) button.disabled = false;
}

function deletion(of, condition, unsaved) {
  const form = document.querySelector("[data-delete-key]");
  const button = form.querySelector("button:not([type])");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const problem = form.querySelector("[data-problem]");
    problem.textContent = "";
    button.disabled = true;
    try {
      await ask(address("/value", { ...of, condition: condition() }), { method: "DELETE" });
      unsaved.forget();
      location.assign(form.dataset.after);
    } catch (error) {
      const late = error.code === "precondition_failed";
      problem.textContent = late ? "It was changed meanwhile, and was not deleted. Load the page again to see it." : error.message;
      button.disabled = false;
    }
  });
  button.disabled = false;
}

function showNew(place) {
  const data = place.dataset;
  const key = document.getElementById("new-key");
  const keyProblem = document.getElementById("new-key-problem");
  const editor = new Editor(place.querySelector("[data-editor]"), Number(data.valueBytesMax));
  editor.settle(new Uint8Array());
  const unsaved = new Unsaved(() => editor.isChanged || key.value !== key.defaultValue);
  editor.form.addEventListener("submit", async (event) => {
    event.preventDefault();
    keyProblem.textContent = "";
    editor.form.querySelector("[data-problem]").textContent = "";
    const bytes = editor.check();
    const beside = editor.beside("");
    if (!bytes || !beside) return;
    const of = { key: key.value, namespace: decodeURIComponent(data.namespace) };
    // Nothing that is there is to be written over by who makes something new.
    const condition = data.kind === "cache" ? "" : "absent";
    const button = editor.form.querySelector("[data-save]");
    button.disabled = true;
    try {
      await ask(...putting({ ...of, ...beside, condition }, bytes));
      unsaved.forget();
      showAnew("The key is made", `${data.page}&key=${encodeURIComponent(key.value)}`);
    } catch (error) {
      const ofKey = ["precondition_failed", "invalid_key", "key_too_long"].includes(error.code);
      if (!ofKey) editor.refuse(error);
      else {
        keyProblem.textContent = error.code === "precondition_failed" ? "There is a key of this name already." : error.message;
        key.focus();
      }
      button.disabled = false;
    }
  });
}
