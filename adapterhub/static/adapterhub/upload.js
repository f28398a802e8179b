// An adapter is checked as soon as it is chosen or dropped: its configuration and the first bytes of its weights are sent.
// Only the files that the server chose among them are uploaded. A zip is checked when it is there.
"use strict";
(() => {
  const card = document.getElementById("upload");
  const form = card.querySelector("form"), button = form.querySelector("button"), bar = form.querySelector("progress");
  const answer = document.getElementById("upload-answer");
  const [picked, folder] = [document.getElementById("upload-files"), document.getElementById("upload-folder")];
  const MOST_HEAD = 2 * 2 ** 20 + 8, MOST_HEADS = 90;
  // Path -> file of what was chosen last, and the files that will be sent.
  let files = new Map(), chosen = [], round = 0;

  card.querySelector(".scripted").hidden = false;
  picked.required = false;
  button.disabled = true;

  const isZip = () => files.size === 1 && /\.zip$/i.test([...files.keys()][0]);
  const isHidden = (path) => path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");
  const isRead = (path) => /(?:adapter_config[^/]*\.json|\.safetensors)$/.test(path) && !isHidden(path);

  function show(node) {
    answer.replaceChildren(node);
    answer.focus({ preventScroll: true });
    answer.scrollIntoView({ block: "nearest" });
  }

  function say(text) {
    const line = document.createElement("p");
    line.textContent = text;
    show(line);
  }

  // The answer is a part of this page; a refusal by another page's rules comes as that page with a message on it.
  function shown(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const part = page.querySelector(".messages") || page.querySelector("main") || page.body.firstElementChild;
    show(document.importNode(part, true));
    return part;
  }

  async function head(file) {
    const first = new DataView(await file.slice(0, 8).arrayBuffer());
    const isWhole = file.name.endsWith(".json") || first.byteLength < 8;
    const length = isWhole ? MOST_HEAD : 8 + Number(first.getBigUint64(0, true));
    return file.slice(0, Math.min(length, MOST_HEAD));
  }

  function fields() {
    const body = new FormData(form);
    body.delete("files");
    body.set("listing", JSON.stringify([...files].slice(0, 5000).map(([path, file]) => [path, file.size])));
    return body;
  }

  async function check() {
    const own = ++round;
    chosen = [];
    button.disabled = true;
    if (!files.size) return answer.replaceChildren();
    if (isZip()) {
      const [[path, file]] = files;
      chosen = [file];
      button.disabled = false;
      return say(`${path} (${(file.size / 2 ** 20).toFixed(1)} MB) is unpacked and checked when it has arrived.`);
    }
    say("Checking…");
    try {
      const body = fields();
      const read = [...files].map(([path, file], place) => [path, file, place]).filter(([path]) => isRead(path));
      for (const [, file, place] of read.slice(0, MOST_HEADS)) body.append("heads", await head(file), String(place));
      const reply = await fetch(form.dataset.check, { method: "POST", body, signal: AbortSignal.timeout(60_000) });
      const text = await reply.text();
      if (own !== round) return;
      const part = shown(text);
      if ("accepted" in part.dataset) {
        chosen = JSON.parse(part.dataset.chosen).map((path) => files.get(path));
        button.disabled = false;
      }
    } catch {
      if (own === round) say("The files could not be read, or the server did not answer. Choose them again in a moment.");
    }
  }

  function take(entries) {
    files = new Map(entries.sort(([one], [other]) => (one < other ? -1 : 1)));
    check();
  }

  // A dropped folder is read entry by entry; a browser gives 100 of them at once.
  async function walk(entry, found, path = "") {
    if (found.length >= 5000) return;
    const place = path ? `${path}/${entry.name}` : entry.name;
    if (entry.isFile) {
      found.push([place, await new Promise((done, failed) => entry.file(done, failed))]);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return;
      for (const each of some) await walk(each, found, place);
    }
  }

  // Large files go in parts: one that broke off goes on by itself, and after a reload when the same file is chosen again.
  const PART = Number(form.dataset.partBytes), PATIENCE_MS = 60_000, MOST_PAUSE_MS = 8_000;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  class Refused extends Error {}

  async function ask(file, offset) {
    const body = new FormData();
    body.set("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
    for (const [name, value] of [["name", file.name], ["size", file.size], ["modified", file.lastModified]]) body.set(name, value);
    if (offset !== undefined) {
      body.set("offset", offset);
      body.set("part", file.slice(offset, offset + PART), "part");
    }
    const reply = await fetch(form.dataset.part, { method: "POST", body, signal: AbortSignal.timeout(300_000) });
    if (reply.status === 409) {
      const received = await ask(file);
      if (received === offset) throw new Refused(await reply.text());
      return received;
    }
    if (reply.status >= 400 && reply.status < 500) throw new Refused(await reply.text());
    if (!reply.ok) throw new Error(reply.statusText);
    return (await reply.json()).received;
  }

  async function sendParts(file, told) {
    let received, failedSince = 0, wait = 500;
    while (received === undefined || received < file.size) {
      try {
        received = await ask(file, received);
        failedSince = 0;
        wait = 500;
        told(received);
      } catch (error) {
        if (error instanceof Refused) throw error;
        failedSince = failedSince || Date.now();
        if (Date.now() - failedSince > PATIENCE_MS) throw error;
        say("The connection broke off. It goes on by itself as soon as the server answers.");
        await pause(wait);
        wait = Math.min(2 * wait, MOST_PAUSE_MS);
        received = undefined;
      }
    }
  }

  async function send() {
    const all = chosen.reduce((sum, file) => sum + file.size, 0);
    if (all <= PART) return finish((body) => chosen.forEach((file) => body.append("files", file)));
    button.disabled = true;
    bar.hidden = false;
    bar.value = 0;
    let before = 0;
    try {
      for (const file of chosen) {
        await sendParts(file, (received) => { bar.value = (before + received) / all; });
        before += file.size;
      }
    } catch (error) {
      bar.hidden = true;
      button.disabled = false;
      if (error instanceof Refused) return shown(error.message);
      const share = Math.floor(100 * bar.value);
      return say(`The connection broke off at ${share} %, and nothing was published. Publish again, also tomorrow after choosing the same files: it goes on there.`);
    }
    const sent = chosen.map((file) => [file.name, file.size, file.lastModified]);
    return finish((body) => body.set("staged", JSON.stringify(sent)));
  }

  function finish(add) {
    const body = fields(), request = new XMLHttpRequest();
    if (isZip()) body.delete("listing");
    add(body);
    button.disabled = true;
    bar.hidden = false;
    request.upload.addEventListener("progress", (event) => { if (event.lengthComputable) bar.value = event.loaded / event.total; });
    request.addEventListener("loadend", () => {
      bar.hidden = true;
      const place = request.getResponseHeader("HX-Redirect");
      if (place) return location.assign(place);
      button.disabled = !isZip() && !chosen.length;
      if (request.status) shown(request.responseText);
      else say("The connection broke off, and nothing was published. What you chose is still here: try again.");
    });
    request.open("POST", form.action);
    request.setRequestHeader("HX-Request", "true");
    request.send(body);
  }

  picked.addEventListener("change", () => { folder.value = ""; take([...picked.files].map((file) => [file.name, file])); });
  folder.addEventListener("change", () => {
    picked.value = "";
    take([...folder.files].map((file) => [file.webkitRelativePath || file.name, file]));
  });
  form.querySelector("details").addEventListener("change", check);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    event.stopPropagation();
    if (chosen.length) send();
  });
  for (const name of ["dragenter", "dragover"]) {
    card.addEventListener(name, (event) => { event.preventDefault(); card.classList.add("over"); });
  }
  card.addEventListener("dragleave", (event) => { if (!card.contains(event.relatedTarget)) card.classList.remove("over"); });
  card.addEventListener("drop", async (event) => {
    event.preventDefault();
    card.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    const found = [];
    try {
      for (const entry of entries) await walk(entry, found);
    } catch {
      return say("What was dropped cannot be read. Choose it with the buttons instead.");
    }
    picked.value = folder.value = "";
    take(found);
  });
})();
