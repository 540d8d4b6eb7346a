// Map of embeddings: colours by any column of the runs; the pointer or the arrow keys name a run, a click opens it.
const mapBox = document.querySelector(".map");
if (mapBox && runTable && runTable.maps.length) {
  const { maps, runs } = runTable;
  const COLOURS = ["#0d7ab8", "#d95f02", "#1a9469", "#c2589b", "#8a6fc9", "#b58900", "#3b9594", "#c0504d"];
  const LEVELS = { good: COLOURS[2], warn: COLOURS[1], bad: COLOURS[7] };
  const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const GREY = "#8a95a1";
  const canvas = mapBox.querySelector("canvas"), context = canvas.getContext("2d"), tip = mapBox.querySelector(".tip");
  const legend = mapBox.querySelector(".legend"), output = mapBox.querySelector("output");
  const varies = (column) => column.values.some((value) => value !== column.values[0]);
  const columns = runTable.columns.filter((column) => column.kind !== "text" && varies(column));
  let map = maps[0], column = columns[0], chosen = -1, level = -1, zoom = 1, middle = [500, 500], colours = [], size = [0, 0];

  const menu = (label, entries, use) => {
    const list = make("select", {}, ...entries.map((text, i) => make("option", { value: i }, text)));
    list.addEventListener("change", () => use(Number(list.value)));
    mapBox.querySelector(".filters").append(make("label", {}, `${label} `, list));
    return list;
  };
  const rowOf = (p) => (map.rows ? map.rows[p] : p);
  const place = (p) => {
    const [width, height] = size, scale = (zoom * Math.min(width, height)) / 1080;
    return [width / 2 + scale * (map.x[p] - middle[0]), height / 2 - scale * (map.y[p] - middle[1])];
  };
  const ramp = (share) => {
    const at = Math.min(3.999, Math.max(0, 4 * share)), i = Math.floor(at), rest = at - i;
    return `rgb(${SCALE[i].map((value, c) => Math.round(value + rest * (SCALE[i + 1][c] - value))).join(",")})`;
  };
  // Colours by run, and the legend: buttons that single out a level, or the range of numbers.
  const paint = () => {
    level = -1;
    legend.replaceChildren();
    if (!column) { colours = runs.map(() => COLOURS[0]); return; }
    const rows = Array.from(map.x, (_, p) => rowOf(p));
    if (column.kind === "number") {
      const known = rows.map((i) => column.values[i]).filter((value) => value !== null).sort((a, b) => a - b);
      const low = known[Math.floor(0.02 * (known.length - 1))] ?? 0, high = known[Math.ceil(0.98 * (known.length - 1))] ?? 1;
      colours = column.values.map((value) => (value === null ? GREY : ramp((value - low) / (high - low || 1))));
      const bar = make("span", { className: "ramp" });
      bar.style.background = `linear-gradient(to right,${[0, 1, 2, 3, 4].map((i) => ramp(i / 4)).join(",")})`;
      legend.append(`≤ ${formatNumber(column, low)} `, bar, ` ≥ ${formatNumber(column, high)} ${column.unit ?? ""}; grey: not known`);
      return;
    }
    const counts = new Map();
    for (const i of rows) counts.set(column.values[i], (counts.get(column.values[i]) ?? 0) + 1);
    const most = [...counts.keys()].filter((code) => code >= 0).sort((a, b) => counts.get(b) - counts.get(a)).slice(0, COLOURS.length);
    const shade = new Map(most.sort((a, b) => a - b).map((code, i) => [code, LEVELS[column.colours?.[column.levels[code]]] ?? COLOURS[i]]));
    colours = column.values.map((code) => shade.get(code) ?? GREY);
    const rest = rows.length - most.reduce((sum, code) => sum + counts.get(code), 0);
    for (const code of most) {
      const dot = make("span", { className: "dot" });
      dot.style.background = shade.get(code);
      const button = make("button", { type: "button", "aria-pressed": "false" }, dot, `${column.levels[code]} (${counts.get(code)})`);
      button.addEventListener("click", () => {
        level = level === code ? -1 : code;
        for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button && level === code));
        draw();
      });
      legend.append(button);
    }
    if (rest) legend.append(make("span", { className: "quiet" }, `grey: ${rest} others or unknown`));
  };
  const draw = () => {
    const ratio = devicePixelRatio || 1, area = canvas.getBoundingClientRect();
    size = [area.width, area.height];
    canvas.width = area.width * ratio;
    canvas.height = area.height * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const radius = (map.x.length > 2000 ? 2.2 : map.x.length > 300 ? 3.2 : 5) * Math.min(2, Math.sqrt(zoom));
    const dim = (i) => level >= 0 && column.values[i] !== level;
    for (const pass of [true, false]) {
      for (let p = 0; p < map.x.length; p++) {
        const i = rowOf(p), [x, y] = place(p);
        if (dim(i) !== pass || x < -9 || y < -9 || x > size[0] + 9 || y > size[1] + 9) continue;
        context.globalAlpha = pass ? 0.12 : 0.8;
        context.fillStyle = pass ? GREY : colours[i];
        context.beginPath();
        context.arc(x, y, radius, 0, 7);
        context.fill();
      }
    }
    context.globalAlpha = 1;
    if (chosen >= 0) {
      const [x, y] = place(chosen);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, radius + 4, 0, 7);
      context.stroke();
    }
    mapBox.querySelector(".axes").textContent = map.axes;
  };
  const name = (p, told) => {
    chosen = p;
    tip.hidden = p < 0;
    if (p >= 0) {
      const i = rowOf(p), [x, y] = place(p), value = column ? `${column.title}: ${formatValue(column, i) || "n/a"} ${column.unit ?? ""}` : "";
      tip.replaceChildren(make("strong", {}, runs[i]), make("br"), value);
      tip.style.left = `${Math.min(x + 12, size[0] - Math.min(size[0], tip.offsetWidth) - 4)}px`;
      tip.style.top = `${y + 14}px`;
      if (told) output.replaceChildren(addressOf(i) ? make("a", { href: addressOf(i) }, runs[i]) : runs[i], ` ${value}`);
    }
    draw();
  };
  const nearest = (event) => {
    const area = canvas.getBoundingClientRect(), at = [event.clientX - area.left, event.clientY - area.top];
    let best = -1, least = 14 ** 2;
    for (let p = 0; p < map.x.length; p++) {
      const [x, y] = place(p), distance = (x - at[0]) ** 2 + (y - at[1]) ** 2;
      if (distance < least && !(level >= 0 && column.values[rowOf(p)] !== level)) [best, least] = [p, distance];
    }
    return best;
  };
  const open = (p) => { if (p >= 0 && addressOf(rowOf(p))) location.href = addressOf(rowOf(p)); };
  const scale = (by) => {
    zoom = Math.min(64, Math.max(1, zoom * by));
    middle = zoom === 1 ? [500, 500] : chosen >= 0 ? [map.x[chosen], map.y[chosen]] : middle;
    tip.hidden = true;
    draw();
  };
  // The next point in the direction of an arrow key: near, and not far off the direction.
  const step = (dx, dy) => {
    if (chosen < 0) return name(0, true);
    const [x0, y0] = place(chosen);
    let best = -1, least = Infinity;
    for (let p = 0; p < map.x.length; p++) {
      const [x, y] = place(p), along = (x - x0) * dx + (y - y0) * dy, across = Math.abs((x - x0) * dy - (y - y0) * dx);
      if (along > 0.01 && along + 2 * across < least) [best, least] = [p, along + 2 * across];
    }
    if (best >= 0) name(best, true);
  };
  const KEYS = { ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    Enter: () => open(chosen), "+": () => scale(2), "-": () => scale(0.5), Escape: () => name(-1) };
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  let touched = -1;
  canvas.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") name(nearest(event)); });
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") name(-1); });
  canvas.addEventListener("click", (event) => {
    const found = nearest(event);
    if (event.pointerType === "touch" && found !== touched) { touched = found; name(found, true); } else open(found);
  });
  menu("Map", maps.map((each) => each.title), (i) => { map = maps[i]; chosen = -1; zoom = 1; middle = [500, 500]; tip.hidden = true; paint(); draw(); });
  menu("Colour", columns.map(titleOf), (i) => { column = columns[i]; paint(); draw(); });
  for (const [text, by, label] of [["+", 2, "Zoom in"], ["−", 0.5, "Zoom out"]]) {
    const button = make("button", { type: "button", "aria-label": label }, text);
    button.addEventListener("click", () => scale(by));
    mapBox.querySelector(".filters").append(button);
  }
  mapBox.hidden = false;
  paint();
  new ResizeObserver(draw).observe(canvas);
}
