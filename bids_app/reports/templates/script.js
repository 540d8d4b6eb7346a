// Buttons below a figure of two images choose which is shown: a fragment of the SVG file's address selects it.
for (const image of document.querySelectorAll("img[data-flicker]")) {
  const row = image.closest("figure").querySelector(".flicker");
  const address = image.getAttribute("src");
  row.hidden = false;
  row.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    image.src = address + button.dataset.show;
    for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
  });
}
// A table's headings sort it: a button in each, first by the largest, then by the smallest.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== "descending";
      const value = (row) => row.cells[column].textContent;
      const order = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const number = (a, b) => Number(value(a)) - Number(value(b));
      const rows = [...body.rows].sort(column ? number : order);
      body.append(...(falling ? rows.reverse() : rows));
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  });
}
// What is folded is wanted on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
