"use strict";
// Sorts a table by the column whose head is pressed; undefined numbers stay at the end.
function sortTable(table, column, ascending) {
  const head = table.tHead.rows[0].cells;
  const number = head[column].dataset.kind === "number";
  const rows = Array.from(table.tBodies[0].rows);
  const key = (row) => {
    const cell = row.cells[column];
    if (!number) return cell.textContent;
    return "value" in cell.dataset ? Number(cell.dataset.value) : null;
  };
  rows.sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    const order = number ? x - y : x.localeCompare(y);
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows);
  for (const cell of head) cell.setAttribute("aria-sort", "none");
  head[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
}
for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
    cell.querySelector("button").addEventListener("click", () => {
      sortTable(table, column, cell.getAttribute("aria-sort") !== "ascending");
    });
  });
}
