// The admin has the colours that the reader chose on the pages, else those of the system.
"use strict";
{
  const chosen = document.currentScript.dataset.chosen;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    document.documentElement.dataset.theme = chosen || (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", apply);
  apply();
}
