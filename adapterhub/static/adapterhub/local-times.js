// Times stand in the reader's own zone, and how long ago something was stays true while the page is open; without this
// script they stand in UTC.
"use strict";
const PARTS = {
  minute: { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short" },
  day: { day: "numeric", month: "short", year: "numeric" },
  second: { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" },
  clock: { hour: "2-digit", minute: "2-digit", timeZoneName: "short" },
};
const FORMATS = Object.fromEntries(
  Object.entries(PARTS).map(([shape, parts]) => [shape, new Intl.DateTimeFormat("en-GB", { hourCycle: "h23", ...parts })]),
);
const UNITS = [["year", 31536000], ["month", 2592000], ["week", 604800], ["day", 86400], ["hour", 3600], ["minute", 60]];
const AGO = new Intl.RelativeTimeFormat("en-GB", { numeric: "always" });
const EVERY_MS = 10000;
function ago(at) {
  const seconds = (Date.now() - at.getTime()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) || ["second", 1];
  return Math.abs(seconds) < 10 ? "now" : AGO.format(-Math.trunc(seconds / size), unit);
}
function tell(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-told])")) {
    const at = new Date(time.dateTime);
    time.dataset.told = "";
    if (Number.isNaN(at.getTime())) continue;
    const format = FORMATS[time.dataset.shape];
    if (format) time.textContent = format.format(at);
    time.title = `${FORMATS.second.format(at)}\n${time.dateTime}`;
  }
  for (const time of root.querySelectorAll("time[data-shape=ago][data-told]")) {
    const text = ago(new Date(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}
document.addEventListener("htmx:afterSettle", () => tell(document));
setInterval(() => tell(document), EVERY_MS);
tell(document);
