// A dialog that names what it is about: <code data-of="namespace"> in it is filled when it opens.
export function name(dialog, of) {
  for (const place of dialog.querySelectorAll("[data-of]")) place.textContent = of[place.dataset.of] ?? "";
}
