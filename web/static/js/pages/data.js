// The data page: groups of the tree that bring their rows when they are opened, and what is done to
// many keys at once.
import { deletion } from "./data_delete.js";
import { name } from "./data_dialogs.js";
import { download } from "./data_download.js";
import { upload } from "./data_upload.js";

const dialogs = ["upload", "download", "delete-many"].map((id) => document.getElementById(id));
const [uploadDialog, downloadDialog, deleteDialog] = dialogs;
const begin = {
  upload: (of) => uploading(of.namespace),
  download: (of) => downloading(of.namespace, of.prefix, Number(of.keys)),
  "delete-many": (of) => deleting(of.namespace, of.prefix),
};
const uploading = upload(uploadDialog);
const downloading = download(downloadDialog);
const deleting = deletion(deleteDialog);

// What the list is of. Names come encoded, for HTML would make other line ends of theirs.
function listed() {
  const { namespace, prefix, keys } = document.getElementById("listing").dataset;
  return { namespace: decodeURIComponent(namespace), prefix: decodeURIComponent(prefix), keys };
}

document.addEventListener("click", (event) => {
  const id = event.target.closest("[data-dialog]")?.dataset.dialog;
  if (!(id in begin)) return;
  // A search brings the list anew, with what it is of.
  const of = listed();
  name(document.getElementById(id), of);
  begin[id](of);
});

function bring(group) {
  if (group.matches?.(".data-group") && group.open && !group.dataset.brought) window.htmx.trigger(group, "level");
}

// `toggle` does not rise, so it is caught on the way down.
document.addEventListener("toggle", (event) => bring(event.target), true);
// What was opened, or typed, before anybody listened.
document.addEventListener("htmx:load", (event) => {
  for (const group of event.detail.elt.querySelectorAll(".data-group[open]")) bring(group);
  const search = event.detail.elt.querySelector("#data-prefix");
  if (search && search.value !== search.defaultValue) window.htmx.trigger(search, "input");
});
document.addEventListener("htmx:afterOnLoad", (event) => {
  const group = event.detail.elt;
  if (!group.matches?.(".data-group")) return;
  if (event.detail.xhr.status === 200) group.dataset.brought = "yes";
  else group.open = false;
});
