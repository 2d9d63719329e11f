// <button data-copy="id-of-element"> copies its text; <button data-copy-text="…"> that text.
import { toast } from "./toasts.js";

async function write(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Without https there is no clipboard but this one.
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not copy");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy], [data-copy-text]");
  if (!button) return;
  const source = button.dataset.copy && document.getElementById(button.dataset.copy);
  const text = source ? (source.value ?? source.textContent) : button.dataset.copyText;
  const label = button.querySelector("[data-copy-label]") ?? button;
  try {
    await write(text);
  } catch {
    toast("The browser does not let this page copy. Select the text instead.", "bad");
    return;
  }
  const before = label.textContent;
  if (before === "Copied") return;
  label.textContent = "Copied";
  setTimeout(() => {
    label.textContent = before;
  }, 1600);
});
