// A gallery: rows sorted by a column, and the pages of ticked runs side by side.
"use strict";

const MOST = 6;  // 3D views at a time; browsers draw no more than 16
const table = document.getElementById("runs"), frames = document.getElementById("frames");

for (const button of table.querySelectorAll("[data-column]")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = Number(button.dataset.column);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => a !== "" && b !== "" && isFinite(a) && isFinite(b) ? a - b : a.localeCompare(b);
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
    rows.sort((a, b) => (key(a) === "") - (key(b) === ""));  // what is not known comes last
    table.tBodies[0].append(...rows);
  });
}

const boxes = [...table.querySelectorAll("input")];
for (const box of boxes) {
  box.addEventListener("change", () => {
    if (box.checked) {
      const figure = document.createElement("figure"), frame = document.createElement("iframe");
      const caption = document.createElement("figcaption");
      frame.src = `${box.dataset.page}#alone`;
      frame.title = `The asset in 3D: ${box.dataset.title}`;
      caption.textContent = box.dataset.title;
      figure.append(frame, caption);
      box.figure = figure;
      frames.append(figure);
    } else {
      box.figure.remove();
    }
    const full = boxes.filter((each) => each.checked).length >= MOST;
    for (const each of boxes) each.disabled = full && !each.checked;
  });
}

window.addEventListener("message", (event) => {  // whose camera moved, and how: for all the others
  const windows = [...frames.querySelectorAll("iframe")].map((frame) => frame.contentWindow);
  if (!windows.includes(event.source) || !event.data?.pose) return;
  for (const other of windows) if (other !== event.source) other.postMessage({pose: event.data.pose}, "*");
});
