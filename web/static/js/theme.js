// Before anything is drawn: that scripts run, and light or dark, if its reader has chosen. Not a
// module, so that it runs while the head is read.
(function () {
  "use strict";
  // What needs scripts is shown (css/base.css).
  document.documentElement.dataset.scripts = "yes";
  try {
    var chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") {
      document.documentElement.dataset.theme = chosen;
    }
  } catch (error) {
    // Storage is switched off: the system's choice stands.
  }
})();
