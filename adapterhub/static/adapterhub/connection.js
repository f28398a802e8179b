// A form leaves its page only when the server answers, and once; a part that cannot be renewed says so and goes on. A
// page that renews itself never does so while its reader is on the way to another one: that would hold them here.
"use strict";
(() => {
  const WAIT_MS = 8000, SILENT_MS = 400;
  let leftAt = -Infinity;

  function say(text, kind) {
    let note = document.getElementById("connection");
    if (!note) {
      note = document.createElement("p");
      note.id = "connection";
      note.setAttribute("role", "alert");
      document.getElementById("main").prepend(note);
    }
    note.dataset.kind = kind;
    note.className = `connection ${kind === "sending" ? "busy" : "bad"}`;
    note.textContent = text;
  }

  function quiet(...kinds) {
    const note = document.getElementById("connection");
    if (note && kinds.includes(note.dataset.kind)) note.remove();
  }

  async function reach() {
    const answer = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(WAIT_MS) });
    if (!answer.ok) throw new Error(answer.status);
  }

  async function send(form, submitter) {
    form.dataset.sending = "";
    submitter?.setAttribute("aria-busy", "true");
    const slow = setTimeout(() => say("Sending… Stay on this page.", "sending"), SILENT_MS);
    try {
      await reach();
      form.dataset.leaves = "";
      form.requestSubmit(submitter);
    } catch {
      clearTimeout(slow);
      say("The server cannot be reached. Nothing was sent, and what you typed is still here: try again in a moment.", "unsent");
      rest(form);
    }
  }

  function rest(form) {
    delete form.dataset.sending;
    delete form.dataset.leaves;
    for (const button of form.querySelectorAll("button[aria-busy]")) button.removeAttribute("aria-busy");
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || "leaves" in form.dataset) return;
    event.preventDefault();
    if (!("sending" in form.dataset)) send(form, event.submitter);
  });

  // A page that the browser kept may be sent again.
  window.addEventListener("pageshow", () => {
    quiet("sending", "unsent");
    for (const form of document.forms) rest(form);
  });

  // A download also begins this way and leaves the page where it is, so the answers count again a little later.
  window.addEventListener("beforeunload", () => { leftAt = performance.now(); });
  document.addEventListener("htmx:beforeOnLoad", (event) => { if (performance.now() - leftAt < WAIT_MS) event.preventDefault(); });

  for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
    document.addEventListener(name, () => {
      const since = new Date().toLocaleTimeString();
      if (!document.querySelector("#connection[data-kind=stale]")) say(`No answer from the server since ${since}. This page shows what it knew then, and goes on by itself.`, "stale");
    });
  }
  document.addEventListener("htmx:afterOnLoad", (event) => { if (event.detail.successful !== false) quiet("stale", "unsent"); });
})();
