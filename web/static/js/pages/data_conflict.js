// Two have changed one value: theirs and mine side by side, and what is to become of them.
import { ask } from "../requests.js";
import { formFor, shownAs } from "./data_bytes.js";
import { address } from "./data_requests.js";

const shown_chars_max = 20_000;

export class Conflict {
  constructor(dialog, { keepMine, takeTheirs }) {
    this.dialog = dialog;
    this.problem = dialog.querySelector("[data-problem]");
    // Of theirs, as they are shown.
    this.condition = "";
    this.expiresAt = "";
    dialog.querySelector("[data-take-theirs]").addEventListener("click", takeTheirs);
    dialog.querySelector("[data-keep-mine]").addEventListener("click", async () => {
      this.problem.textContent = "";
      try {
        await keepMine(this.condition, this.expiresAt);
        dialog.close();
      } catch (error) {
        this.problem.textContent = error.message;
      }
    });
  }

  async show(of, mine) {
    let theirs = null;
    try {
      const answer = await ask(address("/value", { ...of, consistency: "strong" }));
      theirs = new Uint8Array(await answer.arrayBuffer());
      this.condition = answer.headers.get("X-Value-ETag");
      this.expiresAt = answer.headers.get("X-Value-Expires-At") ?? "";
    } catch (error) {
      if (error.code !== "key_not_found") throw error;
      // There must still be none when mine is put.
      this.condition = "absent";
      this.expiresAt = "";
    }
    const form = formFor(mine) === "hex" || (theirs && formFor(theirs) === "hex") ? "hex" : "text";
    this.dialog.querySelector("[data-theirs]").textContent = theirs === null ? "(it was deleted)" : words(form, theirs);
    this.dialog.querySelector("[data-mine]").textContent = words(form, mine);
    this.problem.textContent = "";
    if (!this.dialog.open) this.dialog.showModal();
  }
}

function words(form, bytes) {
  // Text is cut as text, for half a character is none.
  const { text } = shownAs(form, form === "hex" ? bytes.subarray(0, shown_chars_max) : bytes);
  return text.length > shown_chars_max ? `${text.slice(0, shown_chars_max)} …` : text;
}
