// Hovering over a time shows it in the reader's own zone beside the exact one; without this script the exact one stands there alone.
"use strict";
function tell(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-told])")) {
    const at = new Date(time.dateTime);
    time.dataset.told = "";
    if (!Number.isNaN(at.getTime())) time.title = `${at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" })}\n${time.dateTime}`;
  }
}
document.addEventListener("htmx:afterSettle", () => tell(document));
tell(document);
