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
  if (input.dataset?.strength) showStrength(input);
  if (input.getAttribute?.("aria-invalid") === "true") check(input);
});

// On leaving a field, for whoever is still typing is not wrong yet.
document.addEventListener("focusout", (event) => {
  const input = event.target;
  if (input.form?.matches("[data-checked]") && input.value) check(input);
});

document.addEventListener(
  "submit",
  (event) => {
    const form = event.target;
    if (!form.matches("[data-checked]")) return;
    const wrong = [...form.elements].filter((input) => input.willValidate && !check(input));
    if (wrong.length) {
      event.preventDefault();
      event.stopPropagation();
      wrong[0].focus();
    }
  },
  true,
);

function check(input) {
  const problem = document.getElementById(`${input.id}-problem`);
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
  place.querySelector("[data-words]").textContent = input.value ? words : "";
}

for (const form of document.querySelectorAll("form[data-checked]")) form.noValidate = true;
