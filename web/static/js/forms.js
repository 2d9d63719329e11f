// Forms that tell what is wrong while they are filled in.
//   <button data-reveal="id">      shows a password and hides it again
//   <input data-strength="id">     its strength, in the element of that id
//   <form data-checked>            says what the browser finds wrong beside each field
import { strengthOf } from "./password_strength.js";

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-reveal]");
  if (!button) return;
  const input = document.getElementById(button.dataset.reveal);
  const shown = input.type === "password";
  input.type = shown ? "text" : "password";
  button.setAttribute("aria-pressed", String(shown));
  button.textContent = shown ? "Hide" : "Show";
});

document.addEventListener("input", (event) => {
  const input = event.target;
  // What was said of it, by whomever, is of what stood there before.
  if (input.getAttribute?.("aria-invalid") === "true" || problemOf(input)?.textContent) check(input);
  if (input.dataset?.strength) showStrength(input);
});

// On leaving a field, for whoever is still typing is not wrong yet.
document.addEventListener("focusout", (event) => {
  const input = event.target;
  if (!input.form?.matches("[data-checked]") || !input.value || problemOf(input)?.textContent) return;
  check(input);
  if (input.dataset.strength) showStrength(input);
});

document.addEventListener(
  "submit",
  (event) => {
    const form = event.target;
    if (!form.matches("[data-checked]")) return;
    const wrong = [...form.elements].filter((input) => input.willValidate && !check(input));
    for (const input of form.querySelectorAll("[data-strength]")) showStrength(input);
    if (wrong.length) {
      event.preventDefault();
      event.stopPropagation();
      wrong[0].focus();
    }
  },
  true,
);

// Whoever clicks twice means it once. Forms that scripts send are not sent by the browser.
const sent_ms = 8000;
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post") return;
  if (performance.now() - Number(form.dataset.sent ?? -sent_ms) < sent_ms) event.preventDefault();
  else form.dataset.sent = performance.now();
});
// And whoever comes back to a page may send its form again.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

function problemOf(input) {
  return input.id ? document.getElementById(`${input.id}-problem`) : null;
}

function check(input) {
  const problem = problemOf(input);
  if (!problem) return input.checkValidity();
  const words = wordsFor(input);
  problem.textContent = words;
  if (words) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  return !words;
}

function wordsFor(input) {
  const state = input.validity;
  if (state.valid) return "";
  if (state.valueMissing) return input.dataset.missing || "Fill this in";
  return input.dataset.wrong || input.validationMessage;
}

function showStrength(input) {
  const place = document.getElementById(input.dataset.strength);
  const others = [...input.form.elements]
    .filter((other) => other !== input && ["email", "text"].includes(other.type))
    .map((other) => other.value);
  const { score, words } = strengthOf(input.value, others);
  place.querySelector(".strength").dataset.score = input.value ? score : 0;
  // Beside the field it is said already.
  const isSaid = Boolean(problemOf(input)?.textContent);
  place.querySelector("[data-words]").textContent = input.value && !isSaid ? words : "";
}

// The browser's own words would stand above ours.
function take(root) {
  for (const form of root.querySelectorAll("form[data-checked]")) form.noValidate = true;
}

document.addEventListener("htmx:load", (event) => take(event.detail.elt.parentElement ?? document));
take(document);
