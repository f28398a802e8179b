// The answers of the playground appear as they are written; without this script the page comes back with all of them.
"use strict";
(() => {
  const form = document.getElementById("playground");
  if (!form) return;
  const answers = document.getElementById("answers"), status = document.getElementById("answer-status");
  const TYPE = "application/x-ndjson";

  function card(model) {
    const section = document.createElement("section"), title = document.createElement("h2"), text = document.createElement("p");
    section.className = "card";
    section.setAttribute("aria-busy", "true");
    title.textContent = model;
    text.className = "answer";
    text.textContent = "…";
    section.append(title, text);
    answers.append(section);
    return { section, text, isEmpty: true };
  }

  function take(cards, line) {
    const part = JSON.parse(line);
    if (part.model !== undefined) { cards[part.place] = card(part.model); return; }
    const { section, text } = cards[part.place];
    if (part.html !== undefined) {
      section.innerHTML = part.html;
      section.removeAttribute("aria-busy");
      return;
    }
    if (cards[part.place].isEmpty) text.textContent = "";
    cards[part.place].isEmpty = false;
    text.append(part.text);
  }

  async function read(answer) {
    const cards = [], reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) take(cards, line);
    }
  }

  function complain() {
    const note = document.createElement("p");
    note.className = "connection bad";
    note.setAttribute("role", "alert");
    note.textContent = "The answer did not come to its end. What you typed is still here: try again in a moment.";
    answers.prepend(note);
  }

  async function send(button) {
    button.setAttribute("aria-busy", "true");
    answers.replaceChildren();
    status.textContent = "Sent. The answer appears below as it is written.";
    try {
      const answer = await fetch(form.action || location.href, { method: "POST", body: new FormData(form), headers: { Accept: TYPE } });
      // A refusal is a page, which says what is wrong at its field.
      if (!answer.headers.get("Content-Type")?.startsWith(TYPE)) { form.submit(); return; }
      await read(answer);
      status.textContent = "The answer is complete.";
    } catch {
      complain();
    }
    button.removeAttribute("aria-busy");
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    event.stopPropagation();
    const button = form.querySelector("button:not([type=button])");
    if (!button.hasAttribute("aria-busy")) send(button);
  });
})();
