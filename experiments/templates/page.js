"use strict";
// A click on a column sorts by it, a second click the other way round; cells without a value stay last.
function key(row, index) {
  const cell = row.cells[index];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "-" ? null : text;
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, undefined, { numeric: true });
}
function sort(header) {
  const headers = Array.from(header.parentElement.cells);
  const index = headers.indexOf(header);
  const down = header.getAttribute("aria-sort") === "ascending";
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = header.closest("table").tBodies[0];
  const keyed = Array.from(body.rows, (row) => [key(row, index), row]);
  const there = keyed.filter(([value]) => value !== null);
  there.sort(([a], [b]) => (down ? -compare(a, b) : compare(a, b)));
  const empty = keyed.filter(([value]) => value === null);
  body.append(...[...there, ...empty].map(([, row]) => row));
}
document.querySelectorAll("table.sortable th").forEach((header) => {
  header.querySelector("button").addEventListener("click", () => sort(header));
});
