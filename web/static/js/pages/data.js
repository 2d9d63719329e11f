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

document.addEventListener("click", (event) => {
  const id = event.target.closest("[data-dialog]")?.dataset.dialog;
  if (!(id in begin)) return;
  // A search brings the list anew, with what it is of.
  const of = { ...document.getElementById("listing").dataset };
  name(document.getElementById(id), of);
  begin[id](of);
});

// `toggle` does not rise, so it is caught on the way down.
document.addEventListener(
  "toggle",
  (event) => {
    const group = event.target;
    if (group.matches?.(".data-group") && group.open && !group.dataset.brought) window.htmx.trigger(group, "level");
  },
  true,
);
document.addEventListener("htmx:afterOnLoad", (event) => {
  const group = event.detail.elt;
  if (!group.matches?.(".data-group")) return;
  if (event.detail.xhr.status === 200) group.dataset.brought = "yes";
  else group.open = false;
});
