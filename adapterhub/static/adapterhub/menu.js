// Esc closes the open menu, or the open question about a step that cannot be undone, and goes back to what opened it.
"use strict";
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const inside = document.activeElement?.closest("details.menu[open], details.revoke[open], details.override[open]");
  const open = inside || document.querySelector("details.menu[open]");
  if (!open) return;
  open.open = false;
  open.querySelector("summary").focus();
});
