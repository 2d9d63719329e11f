// The cluster's page: looks again while somebody sees it, shows one node's parts of the ring, and
// points at the slot of the key that was looked up.
const ring = document.querySelector(".ring");
const state = document.getElementById("cluster-state");
const live = document.querySelector("[data-live]");
const said = document.querySelector("[data-said]");
// After an answer that did not come; the words about it are a toast's (requests.js).
const patience_ms = 15_000;
let silentUntil = 0;

// The nodes whose parts are shown alone: one that was chosen, or the replicas of a key.
function choose(names) {
  const chosen = new Set(names);
  ring?.classList.toggle("has-choice", chosen.size > 0);
  for (const arcs of ring?.querySelectorAll("[data-of]") ?? []) {
    arcs.classList.toggle("is-chosen", chosen.has(arcs.dataset.of));
  }
}

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    const chosen = button.getAttribute("aria-pressed") !== "true";
    for (const other of document.querySelectorAll("[data-show]")) {
      other.setAttribute("aria-pressed", String(chosen && other === button));
    }
    choose(chosen ? [button.dataset.show] : []);
  });
}

// Light up the replicas of the key, each in the band that it has for the slot.
function point() {
  if (!ring) return;
  const found = document.querySelector("[data-found]");
  const owners = found ? found.dataset.owners.split(" ") : [];
  const hand = ring.querySelector("[data-hand]");
  hand.toggleAttribute("hidden", !found);
  for (const button of document.querySelectorAll("[data-show]")) {
    button.classList.toggle("is-owner", owners.includes(button.dataset.show));
    button.setAttribute("aria-pressed", "false");
  }
  if (!found) return;
  const centre = ring.viewBox.baseVal.width / 2;
  hand.setAttribute("transform", `rotate(${found.dataset.angle} ${centre} ${centre})`);
  ring.querySelector("[data-number]").textContent = Number(found.dataset.slot).toLocaleString("en");
  ring.querySelector("[data-unit]").textContent = "is its slot";
  ring.classList.add("has-choice");
  for (const arcs of ring.querySelectorAll("[data-of]")) {
    arcs.classList.toggle("is-chosen", owners[Number(arcs.dataset.band)] === arcs.dataset.of);
  }
}

// What the tables tell of nodes, the ring shows too.
function showAway() {
  for (const row of state.querySelectorAll("[data-node]")) {
    const away = row.dataset.kind === "bad";
    for (const arcs of ring?.querySelectorAll("[data-of]") ?? []) {
      if (arcs.dataset.of === row.dataset.node) arcs.classList.toggle("is-away", away);
    }
  }
}

const words = { well: "Everything is well.", unwell: "Not everything is well.", away: "No replicator answers." };
let verdict = document.getElementById("cluster-verdict").dataset.verdict;

function tellChange() {
  const now = document.getElementById("cluster-verdict");
  if (now.dataset.verdict !== verdict) {
    verdict = now.dataset.verdict;
    said.textContent = words[verdict];
  }
  // Another epoch has another ring.
  if (now.dataset.epoch !== (ring?.dataset.epoch ?? "0")) location.reload();
}

document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target?.id === "lookup" || event.detail.elt?.id === "lookup") point();
  if (event.detail.target === state) {
    showAway();
    tellChange();
  }
});
for (const failed of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(failed, () => {
    silentUntil = Date.now() + patience_ms;
  });
}

live.hidden = false;
live.addEventListener("click", () => {
  live.setAttribute("aria-pressed", String(live.getAttribute("aria-pressed") !== "true"));
});
setInterval(() => {
  const looks = live.getAttribute("aria-pressed") === "true" && !document.hidden;
  if (looks && Date.now() > silentUntil) window.htmx.trigger(state, "look");
}, Number(state.dataset.every));

showAway();
if (document.querySelector("[data-found]")) point();
