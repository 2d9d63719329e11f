// <time datetime="…Z"> is shown in the reader's own time and language; the title keeps UTC.
const form = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function show(root) {
  const times = [...root.querySelectorAll("time[datetime]")];
  if (root.matches?.("time[datetime]")) times.push(root);
  for (const time of times) {
    const moment = new Date(time.dateTime);
    if (time.dataset.shown || Number.isNaN(moment.getTime())) continue;
    time.dataset.shown = "yes";
    time.title = time.textContent.trim();
    time.textContent = form.format(moment);
  }
}

document.addEventListener("htmx:load", (event) => show(event.detail.elt));
show(document);
