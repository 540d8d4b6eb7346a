// Make an element with properties, attributes of accessibility and children. Also for the other scripts of a page.
const make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
};
// Flicker figures: the fragment of the SVG address selects the image; they alternate unless that is not wanted.
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const flickers = [];
for (const image of document.querySelectorAll("img[data-second]")) {
  const row = document.createElement("div"), address = image.getAttribute("src");
  row.className = "flicker";
  const choices = [[image.dataset.first, ""], [image.dataset.second, "#second"], ["alternate", "#flicker"]];
  const buttons = choices.map(([name, fragment]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => choose(fragment));
    row.append(button);
    return button;
  });
  const choose = (fragment) => {
    if (image.getAttribute("src") !== address + fragment) image.src = address + fragment;  // it would be loaded again
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(choices[i][1] === fragment)));
  };
  choose(calm ? "" : "#flicker");
  image.closest("a").after(row);
  flickers.push(choose);
}
if (flickers.length) {
  const button = document.createElement("button");
  let moves = !calm;
  button.type = "button";
  button.className = "pause";
  const label = () => { button.textContent = moves ? "❚❚ Pause figures" : "▶ Alternate figures"; };
  button.addEventListener("click", () => {
    moves = !moves;
    for (const choose of flickers) choose(moves ? "#flicker" : "");
    label();
  });
  label();
  document.querySelector("nav").append(button);
}
// Figures as PNG, twice as large as on paper. Browsers refuse that for figures beside a page that was opened from disk.
const savePng = async (image, name) => {
  const source = new Image();
  source.src = image.getAttribute("src").split("#")[0];
  await source.decode();
  const canvas = document.createElement("canvas"), scale = 2;
  canvas.width = scale * source.naturalWidth;
  canvas.height = scale * source.naturalHeight;
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const link = document.createElement("a");
  link.download = `${name}.png`;
  link.href = canvas.toDataURL("image/png");
  link.click();
};
for (const figure of document.querySelectorAll("figure[id]")) {
  const image = figure.querySelector("img"), name = figure.id.replace(/^figure-/, ""), place = document.createElement("span");
  const address = image.getAttribute("src").split("#")[0], ending = address.split(".").pop().toUpperCase();
  const link = (text, href) => {
    const element = document.createElement("a");
    element.textContent = text;
    element.href = href;
    place.append(element);
    return element;
  };
  place.className = "save";
  link("Link", `#${figure.id}`).setAttribute("aria-label", `Link to ${name}`);
  link(ending, address).download = `${name}.${ending.toLowerCase()}`;
  figure.querySelector("figcaption").append(" ", place);
  if (ending !== "SVG") continue;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "PNG";
  button.addEventListener("click", () => savePng(image, name).catch(() => {
    const note = document.createElement("span");
    note.setAttribute("role", "status");
    note.textContent = " The browser refuses this for pages opened from disk. Right-click the figure and copy the image instead.";
    place.querySelector("[role=status]")?.remove();
    place.append(note);
  }));
  place.append(button);
}
// The guide to a kind of figure is part of the page once; the other figures of the kind get a copy.
for (const figure of document.querySelectorAll("[data-guide]")) {
  const guide = document.getElementById(`guide-${figure.dataset.guide}`).cloneNode(true);
  guide.removeAttribute("id");
  figure.append(guide);
}
// A link to something within closed details opens them.
const reveal = () => {
  let anchor = location.hash.slice(1).split("&")[0];
  try { anchor = decodeURIComponent(anchor); } catch { /* an address that was cut */ }
  const target = document.getElementById(anchor);
  const closed = [];
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS" && !part.open) closed.push(part);
  if (!closed.length) return;
  for (const part of closed) part.open = true;
  target.scrollIntoView();
};
reveal();
addEventListener("hashchange", reveal);
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
// For printing, open all details, show the first image of each flicker figure, and load all figures. A browser does not wait
// for figures that it loads only then, and prints them blank; the button and the keys of printing do.
const forPaper = () => {
  for (const part of document.querySelectorAll("details:not(.guide)")) part.open = true;
  for (const choose of flickers) choose("");
  const images = [...document.images].filter((image) => !image.closest(".guide"));
  for (const image of images) image.loading = "eager";
  return images;
};
addEventListener("beforeprint", forPaper);
if (document.querySelector("figure img[loading=lazy]")) {
  const printed = document.createElement("button");
  printed.type = "button";
  printed.className = "pause";
  printed.textContent = "Print";
  const print = async () => {
    await Promise.all(forPaper().map((image) => image.decode().catch(() => {})));  // figures that are damaged or gone
    window.print();
  };
  printed.addEventListener("click", print);
  addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey || event.key.toLowerCase() !== "p") return;
    event.preventDefault();
    print();
  });
  document.querySelector("nav").append(printed);
}
