// The dialog of the page of API keys. What it shows is loaded when it is opened, and gone when it
// is closed: nothing of a key that was shown once stays on the page.
const dialog = document.getElementById("key-dialog");
const title = document.getElementById("key-dialog-title");
const content = document.getElementById("key-dialog-content");
const waiting = document.getElementById("key-dialog-waiting");

// Links lead to pages of their own where there are no scripts.
document.addEventListener("click", (event) => {
  if (event.target.closest("a[data-dialog], dialog a[data-close]")) event.preventDefault();
});

// Once it is settled, for htmx takes a form up only then: who typed sooner would leave the page.
content.addEventListener("htmx:afterSettle", () => {
  const shown = content.querySelector("[data-title]");
  if (shown) title.textContent = shown.dataset.title;
  const first = content.querySelector("[aria-invalid=true], [autofocus], select");
  (first ?? content.querySelector("[data-copy], .dialog-foot .button"))?.focus();
});

// A key that nobody has copied is not lost by a click beside the dialog, or by Escape.
const shownOnce = () => content.querySelector("[data-made]") !== null;
dialog.addEventListener("cancel", (event) => {
  if (shownOnce()) event.preventDefault();
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog && shownOnce()) event.stopPropagation();
});

// What could not be brought leaves nothing to wait for; why is told beside the list.
for (const failed of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(failed, (event) => {
    // Refusals have another target, which tells of them.
    const asked = event.detail.requestConfig;
    if (asked?.target === content && asked.verb === "get") dialog.close();
  });
}

dialog.addEventListener("close", () => {
  content.replaceChildren(waiting.content.cloneNode(true));
});
