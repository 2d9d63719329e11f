// What every page can do. Each part listens on the document, so that it also serves what htmx has
// brought later.
import "./theme_toggle.js";
import "./copy.js";
import "./dialogs.js";
import "./forms.js";
import "./requests.js";
import "./strip.js";
import "./tabs.js";
import "./time.js";
import "./toasts.js";
