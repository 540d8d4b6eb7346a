// All runs of a page as thumbnails or as a table: search, filters, order and pages. The state is part of the address,
// so that a view can be shared. Elements exist only for the runs that are shown.
const holder = document.getElementById("run-table");
const runTable = holder && JSON.parse(holder.textContent);
const addressOf = (i, label = "") => {
  const page = runTable.page.levels[runTable.page.values[i]];
  if (!page) return "";
  return page + (label ? `#figure-${runTable.runs[i]}_desc-${label}_bold` : `#run-${runTable.runs[i]}`);
};
const formatNumber = (column, value) => {
  const shown = value * (column.factor ?? 1);
  return column.digits === undefined ? String(Number(shown.toPrecision(4))) : shown.toFixed(column.digits);
};
const formatValue = (column, i) => {
  const value = column.values[i];
  if (column.kind === "category") return column.levels[value] ?? "";
  if (value === null) return "";
  return column.kind === "number" ? formatNumber(column, value) : value;
};
const titleOf = (column) => column.title + (column.unit ? ` (${column.unit})` : "");
const badge = (column, text) => {
  const colour = column.colours?.[text];
  return colour ? make("span", { className: `badge ${colour}` }, text) : text;
};

if (runTable) {
  const { runs, kinds, figures, folder, columns, noun } = runTable;
  const capital = noun[0].toUpperCase() + noun.slice(1);
  const section = document.getElementById("wall"), tool = section.querySelector(".runs");
  const part = (name) => tool.querySelector(`.${name}`);
  const byName = new Map(columns.map((column) => [column.name, column]));
  const filtered = columns.filter((column) => column.filtered && column.levels.length > 1);
  const DEFAULTS = { view: kinds.length ? "wall" : "table", figure: "0", sort: "", order: "", q: "", from: "", to: "", page: "1", size: "96", all: "" };
  const SIZES = ["24", "48", "96", "240", "480"];
  let state = { ...DEFAULTS }, order = [];
  const lower = runs.map((name) => name.toLowerCase());

  // A row of labelled controls, one for each part of the state.
  const control = (label, name, element) => {
    element.addEventListener(element.type === "search" ? "input" : "change", () => {
      change({ [name]: element.type === "checkbox" ? (element.checked ? "1" : "") : element.value });
    });
    element.dataset.state = name;
    const row = element.type === "checkbox" ? make("label", {}, element, ` ${label}`) : make("label", {}, `${label} `, element);
    part("filters").append(row);
    return row;
  };
  const menu = (choices) => make("select", {}, ...choices.map(([value, text]) => make("option", { value }, text)));
  control("Search", "q", make("input", { type: "search", spellcheck: false, autocomplete: "off" }));
  for (const column of filtered) {
    control(column.title, `is-${column.name}`, menu([["", "all"], ...column.levels.map((level) => [level, level])]));
  }
  control("Sort by", "sort", menu([["", noun], ...columns.map((column) => [column.name, titleOf(column)])]));
  control("Order", "order", menu([["", "rising"], ["falling", "falling"]]));
  const from = control("From", "from", make("input", { type: "number", step: "any" }));
  const to = control("To", "to", make("input", { type: "number", step: "any" }));
  if (kinds.length) {
    control("View", "view", menu([["wall", "thumbnails"], ["table", "table"]]));
  }
  const figure = control("Figure", "figure", menu([...kinds.map((kind, k) => [String(k), kind.title]), ["all", "all figures"]]));
  control(`${capital}s a page`, "size", menu(SIZES.map((n) => [n, n])));
  const all = control("all columns", "all", make("input", { type: "checkbox" }));

  const select = () => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = filtered.map((column) => [column.values, column.levels.indexOf(state[`is-${column.name}`] ?? "")]);
    const tests = wanted.filter(([, level]) => level >= 0), column = byName.get(state.sort);
    const isNumber = column?.kind === "number", factor = column?.factor ?? 1;
    const low = isNumber && state.from !== "" ? Number(state.from) / factor : -Infinity;
    const high = isNumber && state.to !== "" ? Number(state.to) / factor : Infinity;
    const limited = low > -Infinity || high < Infinity;
    order = [];
    for (let i = 0; i < runs.length; i++) {
      if (!words.every((word) => lower[i].includes(word))) continue;
      if (!tests.every(([values, level]) => values[i] === level)) continue;
      if (limited && !(column.values[i] !== null && column.values[i] >= low && column.values[i] <= high)) continue;
      order.push(i);
    }
    const sign = state.order === "falling" ? -1 : 1;
    if (!column) return sign < 0 && order.reverse();
    const none = (value) => value === null || value === -1 && column.kind === "category" || value === "";
    const compare = column.kind === "text" ? (a, b) => a.localeCompare(b, "en", { numeric: true }) : (a, b) => a - b;
    order.sort((i, j) => {
      const a = column.values[i], b = column.values[j];
      return none(a) - none(b) || (none(a) ? 0 : sign * compare(a, b)) || i - j;  // missing values last
    });
  };
  const thumbnail = (i, k) => {
    const code = figures.levels[figures.values[i]][k];
    if (!Number(code)) return make("span", { className: "none" }, code === "x" ? "figure cannot be read" : "no figure");
    const image = make("img", { loading: "lazy", alt: `${kinds[k].title} of ${runs[i]}`, width: 192, height: 192 });
    image.style.objectPosition = `${(100 * k) / Math.max(1, kinds.length - 1)}% 0`;
    image.src = `${folder}/${encodeURIComponent(runs[i])}.jpg`;
    return image;
  };
  const tile = (i, chosen) => {
    const shown = state.figure === "all" ? kinds.map((_, k) => k) : [Number(state.figure)];
    const code = figures.values[i] < 0 ? 0 : Number(figures.levels[figures.values[i]][shown[0]]) || 0;
    const address = addressOf(i, code ? kinds[shown[0]].figures[code - 1] : "");
    const text = make("span", { className: "name" }, runs[i]), marks = make("span", { className: "marks" });
    for (const column of columns) {
      const value = column.colours ? formatValue(column, i) : "";
      if (column.colours?.[value] && column.colours[value] !== "good") marks.append(make("span", { className: `badge ${column.colours[value]}` }, `${column.title.toLowerCase()}: ${value}`));
    }
    if (chosen && !chosen.colours) marks.append(`${chosen.title} ${formatValue(chosen, i) || "n/a"} ${chosen.unit ?? ""}`);
    const images = make("span", { className: "images" }, ...shown.map((k) => (figures.values[i] < 0 ? make("span", { className: "none" }, "no figure") : thumbnail(i, k))));
    const link = make(address ? "a" : "span", { className: "tile" }, images, text, marks);
    if (address) link.href = address;
    return make("li", {}, link);
  };
  const headings = (shown) => {
    const row = make("tr");
    for (const column of [null, ...shown]) {
      const button = make("button", { type: "button", title: column?.help ?? "" }, column ? titleOf(column) : capital);
      const head = make("th", { scope: "col" }, button), name = column?.name ?? "";
      if (state.sort === name) head.setAttribute("aria-sort", state.order ? "descending" : "ascending");
      button.addEventListener("click", () => {
        const first = column?.kind === "number" ? "falling" : "";
        change({ sort: name, order: state.sort === name ? (state.order ? "" : "falling") : first });
        part("shown").querySelector("[aria-sort] button")?.focus();
      });
      row.append(head);
    }
    return make("thead", {}, row);
  };
  const table = (rows, chosen) => {
    const shown = columns.filter((column) => column.shown || column === chosen || state.all);
    const body = make("tbody");
    for (const i of rows) {
      const address = addressOf(i);
      const name = address ? make("a", { href: address }, runs[i]) : runs[i];
      const cells = shown.map((column) => make("td", {}, badge(column, formatValue(column, i))));
      body.append(make("tr", {}, make("th", { scope: "row" }, name), ...cells));
    }
    const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `All ${noun}s` });
    scroll.append(make("table", { className: "sortable" }, headings(shown), body));
    return scroll;
  };
  const pager = (place, n) => {
    const present = Number(state.page);
    const go = (page, text, label) => {
      const button = make("button", { type: "button", disabled: page < 1 || page > n || page === present, "aria-label": label }, text);
      button.addEventListener("click", () => {
        change({ page: String(page) });
        tool.scrollIntoView();
        part("pages").querySelector("button:not(:disabled)")?.focus({ preventScroll: true });
      });
      return button;
    };
    place.replaceChildren(go(1, "«", "First page"), go(present - 1, "‹ previous", "Previous page"), ` ${present} of ${n} `,
      go(present + 1, "next ›", "Next page"), go(n, "»", "Last page"));
    place.hidden = n < 2;
  };
  const show = () => {
    select();
    const size = Number(state.size), n = Math.max(1, Math.ceil(order.length / size));
    state.page = String(Math.min(n, Math.max(1, Number(state.page) || 1)));
    const start = (Number(state.page) - 1) * size, rows = order.slice(start, start + size), chosen = byName.get(state.sort);
    const range = rows.length ? `${(start + 1).toLocaleString("en")} to ${(start + rows.length).toLocaleString("en")} of ` : "";
    part("count").textContent = `${range}${order.length.toLocaleString("en")} ${noun}s${order.length < runs.length ? ` (${runs.length.toLocaleString("en")} in all)` : ""}`;
    const isWall = state.view === "wall" && kinds.length > 0;
    part("shown").replaceChildren(isWall ? make("ul", { className: state.figure === "all" ? "wall strips" : "wall" }, ...rows.map((i) => tile(i, chosen))) : table(rows, chosen));
    figure.hidden = !isWall;
    all.hidden = isWall || columns.every((column) => column.shown);
    from.hidden = to.hidden = chosen?.kind !== "number";
    for (const place of tool.querySelectorAll(".pages")) pager(place, n);
    for (const element of tool.querySelectorAll("[data-state]")) {
      const value = state[element.dataset.state] ?? "";
      if (element.type === "checkbox") element.checked = value !== "";
      else if (element !== document.activeElement || element.tagName === "SELECT") element.value = value;
    }
  };
  const change = (parts) => {
    state = { ...state, page: "1", ...parts };
    if ("sort" in parts && !("order" in parts)) {
      Object.assign(state, { order: byName.get(state.sort)?.kind === "number" ? "falling" : "", from: "", to: "" });
    }
    show();
    const told = Object.entries(state).filter(([name, value]) => value !== (DEFAULTS[name] ?? ""));
    const hash = told.map(([name, value]) => `&${encodeURIComponent(name)}=${encodeURIComponent(value)}`).join("");
    try { history.replaceState(null, "", `#wall${hash}`); } catch { /* not for all pages from disk */ }
  };
  const read = () => {
    const [anchor, ...parts] = location.hash.slice(1).split("&");
    if (anchor !== "wall") return;
    state = { ...DEFAULTS };
    for (const part of parts) {
      const [name, value = ""] = part.split("=").map((text) => { try { return decodeURIComponent(text); } catch { return ""; } });
      if (name in DEFAULTS || filtered.some((column) => `is-${column.name}` === name)) state[name] = value;
    }
    if (!SIZES.includes(state.size)) state.size = DEFAULTS.size;
    if (!(state.figure === "all" || kinds[Number(state.figure)])) state.figure = "0";
    show();
    if (parts.length) section.scrollIntoView();
  };
  // From a report to that of the participant before or after it.
  const turn = () => {
    const [, way, from] = /^#(before|after)=(sub-[A-Za-z0-9+]+)$/.exec(location.hash) ?? [];
    if (!way) return;
    const people = [...new Set(runs.filter((_, i) => addressOf(i)).map((name) => name.split("_")[0]))];
    const next = people[people.indexOf(from) + (way === "after" ? 1 : -1)];
    if (next && people.includes(from)) location.replace(`${encodeURIComponent(next)}.html`);
    else history.replaceState(null, "", "#wall");
  };
  tool.hidden = false;
  turn();
  if (runTable.left_out.length) part("left-out").textContent = `Not on this page, to keep it small: ${runTable.left_out.join(", ")}.`;
  show();
  read();
  addEventListener("hashchange", read);
}
