// Short messages at the edge of the page, read aloud by screen readers. From a script:
//   toast("The key was revoked")      toast("It failed", "bad")      toast("Wait", "bad", { stays: true })
// From an answer to htmx: an element put into #toasts.
const stays_ms = 6000;
const place = document.getElementById("toasts");

export function toast(text, kind = "good", { stays = false } = {}) {
  const shown = document.createElement("div");
  shown.className = `toast toast-${kind}`;
  const words = document.createElement("p");
  words.textContent = text;
  shown.append(words);
  // Until somebody clicks it away.
  if (stays) shown.dataset.stays = "yes";
  place?.append(shown);
  return shown;
}

function watch(shown) {
  // What is said again, as of a service that is still away, is said once.
  for (const other of [...place.children]) {
    if (other !== shown && other.textContent === shown.textContent) other.remove();
  }
  let timer;
  const leave = () => shown.remove();
  const wait = () => {
    if (shown.dataset.stays) return;
    timer = setTimeout(leave, shown.classList.contains("toast-bad") ? 2 * stays_ms : stays_ms);
  };
  shown.addEventListener("mouseenter", () => clearTimeout(timer));
  shown.addEventListener("mouseleave", wait);
  shown.addEventListener("click", (event) => {
    if (!event.target.closest("a")) leave();
  });
  wait();
}

if (place) {
  for (const shown of place.children) watch(shown);
  new MutationObserver((changes) => {
    for (const change of changes) {
      for (const node of change.addedNodes) {
        if (node.classList?.contains("toast")) watch(node);
      }
    }
  }).observe(place, { childList: true });
}
