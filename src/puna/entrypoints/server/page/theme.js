// Before the first paint, and for that reason no module: the theme that was chosen here.
"use strict";
try {
  const theme = localStorage.getItem("puna.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system's theme it is.
}
