"use strict";
// The filter of the table of rows. Without scripts the whole table stands there, its answers folded away.
(() => {
  const table = document.querySelector("#rows");
  const controls = document.querySelector("#filter");
  const rows = [...table.tBodies[0].querySelectorAll("tr.row")].map((row) => {
    const answers = row.nextElementSibling?.classList.contains("texts") ? row.nextElementSibling : null;
    const text = (row.cells[0].textContent + " " + (answers?.textContent ?? "")).toLowerCase();
    return { row, answers, text, worse: row.classList.contains("worsened") };
  });
  const { kind, only, words } = controls.elements;

  function show() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, answers, text, worse } of rows) {
      const fits = (!only.checked || worse) && wanted.every((word) => text.includes(word));
      row.hidden = !fits;
      if (answers) answers.hidden = !fits || row.querySelector("button").getAttribute("aria-expanded") !== "true";
      count += fits;
    }
    table.dataset.kind = kind.value;
    document.querySelector("#count").textContent = `${count} of ${rows.length} rows`;
  }

  for (const { row, answers } of rows) {
    const button = row.querySelector("button");
    if (!answers) continue;
    button.addEventListener("click", () => {
      answers.hidden = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!answers.hidden));
    });
  }
  controls.addEventListener("input", show);
  controls.addEventListener("submit", (event) => event.preventDefault());
  if (matchMedia("(max-width: 34rem)").matches) kind.value = "change"; // all columns would not fit
  controls.hidden = false;
  show();
})();
