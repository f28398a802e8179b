// Times stand in the reader's own zone, and the exact one shows on hover; without this script they stand in UTC.
"use strict";
const SHAPES = {
  minute: { dateStyle: "medium", timeStyle: "short" },
  day: { dateStyle: "medium" },
  clock: { timeStyle: "short" },
};
function tell(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-told])")) {
    const at = new Date(time.dateTime);
    time.dataset.told = "";
    if (Number.isNaN(at.getTime())) continue;
    const shape = SHAPES[time.dataset.shape];
    if (shape) time.textContent = at.toLocaleString(undefined, shape);
    time.title = `${at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" })}\n${time.dateTime}`;
  }
}
document.addEventListener("htmx:afterSettle", () => tell(document));
tell(document);
