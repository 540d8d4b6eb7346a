// Buttons of a flicker figure: the fragment of the SVG address selects the image.
for (const image of document.querySelectorAll("img[data-second]")) {
  const row = document.createElement("div"), address = image.getAttribute("src");
  row.className = "flicker";
  const choices = [[image.dataset.first, ""], [image.dataset.second, "#second"], ["alternate", "#flicker"]];
  for (const [name, fragment] of choices) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-pressed", String(!fragment));
    button.addEventListener("click", () => {
      image.src = address + fragment;
      for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
    });
    row.append(button);
  }
  image.closest("a").after(row);
}
// Slider of a carpet plot: steps through the volumes, starting at the maximum FD; follows the pointer on the figure.
for (const box of document.querySelectorAll(".trace")) {
  const facts = box.dataset, slider = box.querySelector("input"), output = box.querySelector("output");
  const sheet = box.closest("figure").querySelector(".sheet"), cursor = document.createElement("span");
  const [n, per, tr, left, right] = ["n", "per", "tr", "left", "right"].map((name) => Number(facts[name]));
  const series = ["fd", "dvars", "signal"].map((name) => facts[name].split(","));
  const shown = (text) => (text ? (Number(text) / 100).toFixed(2) : "n/a");
  const show = () => {
    const i = Number(slider.value), first = i * per, last = Math.min(n, first + per);
    const volumes = per > 1 ? `Volumes ${first + 1} to ${last}` : `Volume ${last}`;
    const seconds = tr ? `, ${(first * tr).toFixed(1)} to ${(last * tr).toFixed(1)} s` : "";
    const [fd, dvars, signal] = series.map((values) => shown(values[i]));
    const sign = signal > 0 ? "+" : "";
    const text = `${volumes} of ${n}${seconds}: FD ${fd} mm, ${facts.dvarsName} ${dvars}, global signal ${sign}${signal} %`;
    output.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    cursor.style.left = `${100 * (left + ((right - left) * first) / n)}%`;
    cursor.style.width = `${(100 * (right - left) * (last - first)) / n}%`;
  };
  box.hidden = false;
  if (right) {
    cursor.className = "cursor";
    sheet.append(cursor);
    sheet.addEventListener("pointermove", (event) => {
      const area = sheet.getBoundingClientRect();
      const share = ((event.clientX - area.left) / area.width - left) / (right - left);
      if (share < 0 || share >= 1) return;
      slider.value = Math.floor((share * n) / per);
      show();
    });
  }
  slider.addEventListener("input", show);
  slider.value = series[0].reduce((best, value, i, all) => (Number(value) > Number(all[best]) ? i : best), 0);
  show();
}
// Sortable tables: a button in each heading, descending first.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") !== "descending";
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const number = (a, b) => Number(value(a)) - Number(value(b)) || order(a, b);
      const rows = [...body.rows].sort(number);
      body.append(...(falling ? rows.reverse() : rows));
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  });
}
// Open all details for printing.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
