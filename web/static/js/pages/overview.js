// Figures are loaded anew every few seconds, for as long as somebody looks at them.
const every_ms = 15000;
const words = document.querySelector("[data-live-words]");

function isLookedAt() {
  return document.visibilityState === "visible";
}

function refresh() {
  if (!isLookedAt() || document.querySelector(".htmx-request")) return;
  for (const part of document.querySelectorAll("[data-live]")) htmx.trigger(part, "refresh");
}

// All first steps are done: there is nothing more to wait for.
document.addEventListener("htmx:afterSwap", (event) => {
  const part = event.target;
  if (part.id === "first-steps" && !part.querySelector("section")) part.removeAttribute("data-live");
});

setInterval(refresh, every_ms);
document.addEventListener("visibilitychange", refresh);
words.textContent = `Refreshed every ${every_ms / 1000} s`;
