// Tabs as WAI-ARIA has them: arrow keys move, Home and End jump. All lists with the same
// data-tabs-of choose together, and what was chosen is kept for the next page.
function listOf(tab) {
  return tab.closest("[role=tablist]");
}

function choose(tab, { focus = false } = {}) {
  for (const other of listOf(tab).querySelectorAll("[role=tab]")) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    const panel = document.getElementById(other.getAttribute("aria-controls"));
    if (panel) panel.hidden = !chosen;
  }
  if (focus) tab.focus();
}

function chooseAlike(of, name) {
  for (const list of document.querySelectorAll(`[data-tabs-of="${CSS.escape(of)}"]`)) {
    const alike = list.querySelector(`[role=tab][data-tab="${CSS.escape(name)}"]`);
    if (alike) choose(alike);
  }
}

function chosen(tab, focus) {
  choose(tab, { focus });
  const of = listOf(tab).dataset.tabsOf;
  if (!of || !tab.dataset.tab) return;
  chooseAlike(of, tab.dataset.tab);
  try {
    localStorage.setItem(`tabs.${of}`, tab.dataset.tab);
  } catch {
    // It lasts for this page then.
  }
}

document.addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (tab) chosen(tab, false);
});

document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.("[role=tab]");
  if (!tab) return;
  const tabs = [...listOf(tab).querySelectorAll("[role=tab]")];
  const at = tabs.indexOf(tab);
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 };
  if (!(event.key in moves)) return;
  event.preventDefault();
  chosen(tabs.at(moves[event.key] % tabs.length), true);
});

for (const of of new Set([...document.querySelectorAll("[data-tabs-of]")].map((l) => l.dataset.tabsOf))) {
  let kept = null;
  try {
    kept = localStorage.getItem(`tabs.${of}`);
  } catch {
    // Nothing is kept.
  }
  if (kept) chooseAlike(of, kept);
}
