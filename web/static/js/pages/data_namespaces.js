// The page of namespaces: deleting one.
import { deletion } from "./data_delete.js";
import { name } from "./data_dialogs.js";

const dialog = document.getElementById("delete-namespace");
const deleting = deletion(dialog);

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-delete-namespace]");
  if (!button) return;
  const namespace = decodeURIComponent(button.dataset.deleteNamespace);
  name(dialog, { namespace });
  deleting(namespace, "", Number(button.dataset.keys));
  dialog.showModal();
});
