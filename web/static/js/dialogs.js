// <button data-dialog="id"> opens a <dialog>, <button data-close> in one closes it. A dialog with
// data-open is open as soon as it is on the page. A click beside it closes it too.
function open(dialog) {
  if (!dialog.open) dialog.showModal();
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.dialog);
    if (dialog) open(dialog);
    return;
  }
  if (event.target.closest("dialog [data-close]") || event.target.matches?.("dialog[open]")) {
    event.target.closest("dialog").close();
  }
});

function openThoseOf(root) {
  for (const dialog of root.querySelectorAll("dialog[data-open]")) open(dialog);
}

document.addEventListener("htmx:load", (event) => {
  const brought = event.detail.elt;
  if (brought.matches?.("dialog[data-open]")) open(brought);
  openThoseOf(brought);
});
openThoseOf(document);

// <input data-confirm="text"> keeps its form's button disabled until that text is typed.
document.addEventListener("input", (event) => {
  const wanted = event.target.dataset?.confirm;
  if (wanted === undefined) return;
  const button = event.target.form?.querySelector("[type=submit]");
  if (button) button.disabled = event.target.value !== wanted;
});
