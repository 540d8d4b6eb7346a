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
// What is folded is wanted on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
