// The form of a value: the same bytes as text, JSON, hex or base64, and what is kept beside them.
import { sizeOf } from "../size.js";
import { bytesOf, formFor, shownAs, tidied } from "./data_bytes.js";

export class Editor {
  constructor(form, bytes_max) {
    this.form = form;
    this.bytes_max = bytes_max;
    this.area = form.querySelector("#value-text");
    this.problem = form.querySelector("#value-problem");
    this.size = form.querySelector("[data-size]");
    this.expiry = form.querySelector("#value-expiry");
    this.ttl = form.querySelector("#value-ttl");
    this.type = form.querySelector("#value-type");
    this.pairs = form.querySelector("[data-metadata]");
    this.tidy = form.querySelector("[data-tidy]");
    this.lineEnd = "\n";
    this.kept = null;
    this.listen();
    // Somebody may have typed before this was there.
    this.shownForm = this.chosen;
    this.showTtl();
    this.check();
    this.settle();
    form.querySelector("[data-save]").disabled = false;
  }

  showTtl() {
    this.form.querySelector("[data-after]").hidden = this.expiry.value !== "after";
  }

  listen() {
    this.form.addEventListener("change", (event) => {
      if (event.target.name === "form") this.turn(event.target.value);
      if (event.target === this.expiry) this.showTtl();
      if (event.target.matches("[data-from-file]")) this.fromFile(event.target);
    });
    this.area.addEventListener("input", () => {
      this.kept = null;
      this.check();
    });
    this.pairs.addEventListener("input", () => this.sayOf("metadata-problem", ""));
    this.tidy.addEventListener("click", () => {
      if (!this.check()) return;
      this.area.value = tidied(this.area.value);
      this.kept = null;
      this.check();
    });
    this.form.querySelector("[data-add-pair]").addEventListener("click", () => {
      const pair = this.form.querySelector("template[data-pair]").content.cloneNode(true);
      this.pairs.append(pair);
      this.pairs.lastElementChild.querySelector("input").focus();
    });
    this.form.addEventListener("click", (event) => {
      const button = event.target.closest("[data-remove-pair]");
      if (!button) return;
      button.parentElement.remove();
      this.form.querySelector("[data-add-pair]").focus();
    });
  }

  get chosen() {
    return this.form.querySelector("[name=form]:checked").value;
  }

  // Show these bytes, in the form that suits them.
  set(bytes, form = formFor(bytes)) {
    this.kept = bytes;
    this.show(form, bytes);
  }

  show(form, bytes) {
    const { text, lineEnd } = shownAs(form, bytes);
    this.form.querySelector(`[name=form][value=${form}]`).checked = true;
    this.shownForm = form;
    this.lineEnd = lineEnd;
    this.area.value = text;
    this.tidy.hidden = form !== "json";
    this.check();
  }

  // The same bytes in another form; if that cannot be, it stays as it is and says why.
  turn(form) {
    try {
      // Text that is meant to become JSON need not be any yet.
      const between = this.shownForm === "json" ? "text" : this.shownForm;
      const bytes = this.kept ?? bytesOf(between, this.area.value, this.lineEnd);
      this.show(form, bytes);
    } catch (error) {
      this.form.querySelector(`[name=form][value=${this.shownForm}]`).checked = true;
      this.say(error.message);
    }
  }

  // The bytes as they are meant now; null, and words beside the field, if they are none.
  check() {
    try {
      // Untouched they are what they were, also where a form could not say them again.
      const bytes = this.kept ?? bytesOf(this.shownForm, this.area.value, this.lineEnd);
      if (this.kept && this.shownForm === "json") bytesOf("json", this.area.value, this.lineEnd);
      this.size.textContent = sizeOf(bytes.length);
      const over = bytes.length > this.bytes_max;
      this.say(over ? `A value has at most ${sizeOf(this.bytes_max)}.` : "");
      return over ? null : bytes;
    } catch (error) {
      this.say(error.message);
      return null;
    }
  }

  // From now on changes are those to what there is now; of something new, to `bytes`.
  settle(bytes = this.bytes()) {
    this.settled = { bytes, beside: this.besideText() };
  }

  get isChanged() {
    return this.besideText() !== this.settled.beside || !areEqual(this.bytes(), this.settled.bytes);
  }

  // As they are meant now, or null.
  bytes() {
    try {
      return this.kept ?? bytesOf(this.shownForm, this.area.value, this.lineEnd);
    } catch {
      return null;
    }
  }

  besideText() {
    const inputs = [this.expiry, this.ttl, this.type, ...this.pairs.querySelectorAll("input")];
    return JSON.stringify(inputs.map((input) => input.value));
  }

  say(words) {
    this.problem.textContent = words;
    if (words) this.area.setAttribute("aria-invalid", "true");
    else this.area.removeAttribute("aria-invalid");
  }

  async fromFile(input) {
    const file = input.files[0];
    input.value = "";
    if (!file) return;
    if (file.size > this.bytes_max) {
      this.say(`${file.name} has ${sizeOf(file.size)}; a value has at most ${sizeOf(this.bytes_max)}.`);
      return;
    }
    this.set(new Uint8Array(await file.arrayBuffer()));
    if (!this.type.value) this.type.value = file.type;
  }

  // What goes beside the bytes into a request; null, and words, if something is wrong.
  beside(expiresAt) {
    const members = { content_type: this.type.value };
    const metadata = {};
    for (const pair of this.pairs.children) {
      const [name, content] = [...pair.querySelectorAll("input")].map((input) => input.value);
      if (!name && !content) continue;
      if (name in metadata) return this.sayOf("metadata-problem", `${name} is there twice`);
      metadata[name] = content;
    }
    this.sayOf("metadata-problem", "");
    if (Object.keys(metadata).length) members.metadata = JSON.stringify(metadata);
    if (this.expiry.value === "keep") members.expires_at = expiresAt;
    if (this.expiry.value === "after") {
      members.ttl = this.ttl.value.trim();
      if (!members.ttl) return this.sayOf("value-ttl-problem", "Say how long, such as 24h");
    }
    this.sayOf("value-ttl-problem", "");
    return members;
  }

  sayOf(id, words) {
    document.getElementById(id).textContent = words;
    return null;
  }

  // A refusal, beside the field that it is about.
  refuse(error) {
    const places = {
      invalid_ttl: "value-ttl-problem",
      metadata_too_large: "metadata-problem",
      value_too_large: "value-problem",
      invalid_header: /content-type|content type/i.test(error.message) ? "value-type-problem" : "metadata-problem",
    };
    const place = places[error.code];
    const shown = place && !document.getElementById(place).closest("[hidden]");
    if (shown) this.sayOf(place, error.message);
    else this.form.querySelector("[data-problem]").textContent = error.message;
  }
}

function areEqual(one, other) {
  if (one === other) return true;
  return one !== null && other !== null && one.length === other.length && one.every((byte, at) => byte === other[at]);
}
