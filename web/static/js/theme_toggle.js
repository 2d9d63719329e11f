// <button data-theme-toggle>: light or dark, kept for the next page.
const root = document.documentElement;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function current() {
  return root.dataset.theme ?? (systemIsDark.matches ? "dark" : "light");
}

function show() {
  for (const button of document.querySelectorAll("[data-theme-toggle]")) {
    button.setAttribute("aria-pressed", String(current() === "dark"));
  }
}

document.addEventListener("click", (event) => {
  if (!event.target.closest("[data-theme-toggle]")) return;
  const next = current() === "dark" ? "light" : "dark";
  root.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // It lasts for this page then.
  }
  show();
  document.dispatchEvent(new CustomEvent("theme", { detail: next }));
});
systemIsDark.addEventListener("change", () => {
  show();
  document.dispatchEvent(new CustomEvent("theme", { detail: current() }));
});
show();

// The colour of a token such as "--series-1" as it is now, for what is drawn on a canvas. Draw anew
// when the document says "theme".
export function colourOf(token) {
  const probe = document.createElement("span");
  probe.style.color = `var(${token})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}
