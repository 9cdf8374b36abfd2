// Keys press what is on the page; without this script every button and link works as well.
"use strict";
let sent = false; // a second key before the next page is there must not decide twice
addEventListener("pageshow", () => { sent = false; });
document.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
document.querySelector(".filters button").hidden = true; // a change is enough
document.querySelectorAll(".filters select, .filters input").forEach((field) => {
  field.addEventListener("change", () => field.form.requestSubmit());
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  const field = event.target.closest("input, select");
  if (field) {
    if (event.key === "Escape") field.blur();
    if (event.key === "Enter" && field.name === "label") {
      event.preventDefault();
      document.getElementById("relabel").click();
    }
    return;
  }
  const target = document.querySelector(`[data-key~="${CSS.escape(event.key.toLowerCase())}"]`);
  if (!target) return;
  event.preventDefault();
  if (target.matches("input, select")) target.focus();
  else if (!sent) target.click();
});
