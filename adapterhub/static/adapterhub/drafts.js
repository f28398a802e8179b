// What was typed into a form outlives a reload, the way back and a closed tab, on this device and for this person only.
// It goes when the form has done its work, when the person discards it, and when they sign out.
"use strict";
(() => {
  const person = document.body.dataset.user;
  if (!person) return;
  const PREFIX = `draft:${person}:`, LEFT = "draft-left";
  const UNKEPT = new Set(["hidden", "file", "submit", "button"]);

  const forms = [...document.querySelectorAll("main form[method=post]")];
  const keyOf = (form) => `${PREFIX}${location.pathname}${location.search}#${form.getAttribute("action") || ""}`;
  // A code signs in: it is no more kept than a password.
  const isSecret = (field) => field.type === "password" || field.autocomplete === "one-time-code";
  const isKept = (field) => field.name && !UNKEPT.has(field.type) && !isSecret(field);
  const fieldsOf = (form) => [...form.elements].filter(isKept);
  const isChoice = (field) => field.type === "checkbox" || field.type === "radio";
  const nameOf = (field) => (isChoice(field) ? `${field.name}=${field.value}` : field.name);
  const valueOf = (field) => (isChoice(field) ? field.checked : field.value);

  function initialOf(field) {
    if (isChoice(field)) return field.defaultChecked;
    if (field.tagName !== "SELECT") return field.defaultValue;
    return ([...field.options].find((option) => option.defaultSelected) || field.options[0] || { value: "" }).value;
  }

  function keep(form) {
    const changed = fieldsOf(form).filter((field) => valueOf(field) !== initialOf(field));
    const draft = Object.fromEntries(changed.map((field) => [nameOf(field), valueOf(field)]));
    if (changed.length) localStorage.setItem(keyOf(form), JSON.stringify(draft));
    else localStorage.removeItem(keyOf(form));
  }

  function restore(form) {
    const draft = JSON.parse(localStorage.getItem(keyOf(form)) || "null");
    if (!draft) return;
    const found = fieldsOf(form).filter((field) => nameOf(field) in draft && valueOf(field) !== draft[nameOf(field)]);
    for (const field of found) {
      if (isChoice(field)) field.checked = draft[nameOf(field)];
      else field.value = draft[nameOf(field)];
    }
    if (found.length) { tell(form); found[0].dispatchEvent(new Event("change", { bubbles: true })); }
  }

  function tell(form) {
    const note = document.createElement("p");
    note.className = "helptext draft";
    note.setAttribute("role", "status");
    note.append("What you had typed here is back. ");
    const discard = document.createElement("button");
    Object.assign(discard, { type: "button", className: "plain", textContent: "Discard it" });
    discard.addEventListener("click", () => { localStorage.removeItem(keyOf(form)); form.reset(); note.remove(); });
    note.append(discard);
    form.prepend(note);
  }

  function forget(prefix) {
    for (const key of Object.keys(localStorage)) if (key.startsWith(prefix)) localStorage.removeItem(key);
  }

  // A form that left has done its work unless this page says that it was refused, or is the same page without a word.
  const left = JSON.parse(sessionStorage.getItem(LEFT) || "null");
  sessionStorage.removeItem(LEFT);
  if (left) {
    const isRefused = document.querySelector(".messages .bad, .errorlist, [role=alert].notice");
    const isBack = left.path === location.pathname && !document.querySelector(".messages .good");
    if (!isRefused && !isBack) localStorage.removeItem(left.key);
  }

  for (const form of forms) {
    restore(form);
    form.addEventListener("input", () => keep(form));
    form.addEventListener("change", () => keep(form));
  }
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.action.endsWith("/logout/")) return forget(PREFIX);
    if (forms.includes(form) && "leaves" in form.dataset) sessionStorage.setItem(LEFT, JSON.stringify({ key: keyOf(form), path: location.pathname }));
  });
})();
