// A dialog in which something long is done: how far it has come, and a button that stops it.
//   new Job(dialog, async (job) => { …; job.tell(0.5, "half of it"); return "All of it is done"; })
// What is done gets job.signal, and returns the last words. A dialog that closes stops its job.

export class Job {
  constructor(dialog, work) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.place = dialog.querySelector("[data-job]");
    this.progress = this.place.querySelector("progress");
    this.words = this.place.querySelector("[data-words]");
    this.go = dialog.querySelector("[data-go]");
    this.stop = dialog.querySelector("[data-stop]");
    this.idleLabel = this.stop.textContent;
    this.changed = false;
    this.running = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.running) this.run(work);
    });
    this.stop.addEventListener("click", () => {
      if (this.running) this.running.abort();
      else dialog.close();
    });
    dialog.addEventListener("close", () => {
      this.running?.abort();
      // What the list shows is not what there is any more.
      if (this.changed) location.reload();
    });
  }

  get signal() {
    return this.running.signal;
  }

  // Before it is begun, again.
  reset() {
    this.place.hidden = true;
    this.words.textContent = "";
    this.form.hidden = false;
  }

  // `done` is a share of 1, or null where nobody knows of what.
  tell(done, words) {
    if (done === null) this.progress.removeAttribute("value");
    else this.progress.value = Math.min(done, 1);
    this.words.textContent = words;
  }

  async run(work) {
    this.running = new AbortController();
    this.place.hidden = false;
    this.go.disabled = true;
    this.stop.textContent = "Stop";
    this.form.setAttribute("aria-busy", "true");
    try {
      this.tell(1, await work(this));
    } catch (error) {
      const stopped = error.name === "AbortError";
      const words = this.words.textContent;
      this.tell(this.progress.value ?? 0, `${stopped ? "Stopped" : `Stopped: ${error.message}`}. ${words}`);
    }
    this.running = null;
    this.form.removeAttribute("aria-busy");
    this.stop.textContent = "Close";
    this.go.disabled = this.changed;
  }
}
