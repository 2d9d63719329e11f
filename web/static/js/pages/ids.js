// How many IDs of a size there are, told beside the slider; and IDs that were made, as a file.
const characters = 62n;

/** @param {Document|Element} root */
function showSize(root) {
  const slider = root.querySelector("#field-size");
  if (!slider) return;
  const room = characters ** BigInt(slider.value);
  root.querySelector("[data-size-shown]").textContent = slider.value;
  root.querySelector("[data-size-room]").textContent = `There are ${inWords(room)} of them.`;
}

/** 3521614606208n as "3.5 trillion". @param {bigint} number */
function inWords(number) {
  const form = new Intl.NumberFormat("en", { notation: "compact", compactDisplay: "long", maximumFractionDigits: 1 });
  if (number < 10n ** 15n) return form.format(number);
  const digits = number.toString();
  return `${digits[0]}.${digits[1]} × 10^${digits.length - 1}`;
}

document.addEventListener("input", (event) => {
  if (event.target.id === "field-size") showSize(document);
});
document.addEventListener("htmx:load", () => showSize(document));
showSize(document);

// <button data-download="id-of-element"> saves its text, a line for each ID.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-download]");
  if (!button) return;
  const text = document.getElementById(button.dataset.download).textContent;
  const url = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/plain" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "ids.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});
