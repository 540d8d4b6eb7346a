"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const { images, kinds, figures, columns, missing } = content;
const [IMAGE, KIND, NAME, EXTENSION, VERSION] = [0, 1, 2, 3, 4];
const byId = (id) => document.getElementById(id);
const online = content.rater !== "";
const EMPTY = { rating: "", tags: [], note: "", time: "" };
const nothing = (row) => !row.rating && !row.tags.length && !row.note;

// Ratings as they are shown, by figure. `stored` is what the server has confirmed.
let shown = new Map(Object.entries(content.rated));
const stored = new Map(shown);
const undoable = [];
let present = 0, list = [], place = new Map(), alternate = "", waiting = 0, queue = Promise.resolve();

const ratingOf = (index) => shown.get(figures[index][NAME]) ?? EMPTY;
const rowOf = (index) => (ratingOf(index).outdated ? EMPTY : ratingOf(index));
const isRated = (index) => Boolean(rowOf(index).rating);
const nameOf = (index) => `${images[figures[index][IMAGE]]}: ${kinds[figures[index][KIND]].title}`;
const problem = (text) => { byId("problem").textContent = text; byId("problem").hidden = !text; };

// Notes in a table: one line per row, as in bids_app/outputs/ratings.py.
const SHORT = { "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r" };
const PLAIN = { "\\": "\\", t: "\t", n: "\n", r: "\r" };
const hex = (char) => "\\u" + char.charCodeAt(0).toString(16).padStart(4, "0");
const escapeNote = (note) => {
  const text = note.replace(/[\u0000-\u001f\u007f-\u009f\\\u2028\u2029]/g, (char) => SHORT[char] ?? hex(char));
  return text === missing ? "\\u006e/a" : text;
};
const unescapeNote = (cell) => cell.replace(/\\(u[0-9a-f]{4}|[\\tnr])/g, (_, code) =>
  code.length === 1 ? PLAIN[code] : String.fromCharCode(parseInt(code.slice(1), 16)));
const cleanNote = (note) => (note.toWellFormed?.() ?? note).replace(/\r\n/g, "\n").replace(/[\u202a-\u202e\u2066-\u2069]/g, "").trim();
const quoted = (cell) => (/["\t\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
const OF_OUTPUTS = /^(desc|space|res|from|to|mode|label|seg)-/;
const imageOf = (name) => name.split("_").slice(0, -1).filter((part) => !OF_OUTPUTS.test(part)).join("_");
const formatTable = () => {
  const rows = [columns.join("\t")];
  for (const [name, row] of shown) {
    if (nothing(row)) continue;
    const cells = [name.split("_")[0], imageOf(name), name, row.rating, row.tags.join(",")];
    cells.push(escapeNote(row.note), row.hash, row.time);
    rows.push(cells.map((cell) => quoted(cell || missing)).join("\t"));
  }
  return rows.join("\n") + "\n";
};
const parseTable = (text) => {
  const rows = [];
  let row = [], cell = "", inside = false;
  const source = text.replace(/^\ufeff/, "").replace(/\r\n/g, "\n");
  for (let i = 0; i < source.length; i++) {
    const char = source[i];
    if (inside && char === '"' && source[i + 1] === '"') { cell += char; i++; }
    else if (char === '"' && (inside || !cell)) inside = !inside;
    else if (!inside && (char === "\t" || char === "\n")) {
      row.push(cell);
      cell = "";
      if (char === "\n") { rows.push(row); row = []; }
    } else cell += char;
  }
  if (inside || cell || row.length) throw new Error("the last line is not complete");
  const [header, ...body] = rows;
  if (!header || header.join("\t") !== columns.join("\t")) throw new Error("it has other columns");
  const found = new Map();
  body.forEach((cells, index) => {
    const where = `line ${index + 2}`;
    if (cells.length !== columns.length) throw new Error(`${where} has ${cells.length} cells`);
    const [, , figure, rating, tags, note, hash, time] = cells.map((text) => (text === missing ? "" : text));
    const list = tags ? tags.split(",") : [];
    if (rating && !content.ratings.includes(rating)) throw new Error(`${where}: unknown rating`);
    if (list.some((tag) => !content.tags.includes(tag))) throw new Error(`${where}: unknown tag`);
    if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$/.test(time)) throw new Error(`${where}: no time`);
    if (found.has(figure)) throw new Error(`${where}: ${figure} has two rows`);
    found.set(figure, { rating, tags: list, note: unescapeNote(note), time, hash });
  });
  return found;
};

// Where ratings go: to the server, or to the storage of the browser.
const post = async (figure, row) => {
  const name = figure[NAME], replaces = stored.get(name)?.time ?? "";
  const answer = await fetch("rate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...row, figure: name, replaces, version: figure[VERSION] }),
  }).catch(() => null);
  const text = answer ? await answer.text() : "";
  let reply = {};
  try { reply = JSON.parse(text); } catch { reply = { message: "The server does not answer." }; }
  if ("current" in reply) reply.current ? stored.set(name, reply.current) : stored.delete(name);
  if (!answer || !answer.ok) throw new Error(reply.message ?? "The server refused the rating.");
};
const storageKey = () => `neurostorm-review ${content.folder} ${byId("rater").value}`;
const keep = async (figure, row) => {
  const name = figure[NAME], key = storageKey();
  if (!byId("rater").value || !byId("rater").checkValidity()) throw new Error("Enter the name of the rater first.");
  const kept = readKept();  // another window may have added ratings
  const time = new Date().toISOString();
  if (nothing(row)) kept.delete(name);
  else kept.set(name, { ...row, time, hash: figure[VERSION] });
  localStorage.setItem(key, JSON.stringify([...kept]));
  if (localStorage.getItem(key) === null) throw new Error("The browser keeps no data of this page.");
  for (const [each, value] of markOutdated(kept)) stored.set(each, value);
  if (!kept.has(name)) stored.delete(name);
};
const readKept = () => new Map(JSON.parse(localStorage.getItem(storageKey()) ?? "[]"));
const markOutdated = (kept) => {
  const hashes = new Map(figures.map((figure) => [figure[NAME], figure[VERSION]]));
  for (const [name, row] of kept) row.outdated = Boolean(row.hash) && hashes.has(name) && row.hash !== hashes.get(name);
  return kept;
};
const save = (index, row) => {
  const figure = figures[index], name = figure[NAME];
  waiting++;
  nothing(row) ? shown.delete(name) : shown.set(name, row);
  byId("saved").textContent = "saving";
  queue = queue.then(() => (online ? post : keep)(figure, row)).then(() => {
    waiting--;
    if (!waiting) {
      byId("saved").textContent = `saved: ${row.rating || (nothing(row) ? "removed" : "tags, note")}`;
      shown = new Map([...shown, ...stored]);
      for (const each of shown.keys()) if (!stored.has(each)) shown.delete(each);
    }
    update();
  }).catch((error) => {
    waiting--;
    stored.has(name) ? shown.set(name, stored.get(name)) : shown.delete(name);
    for (let i = undoable.length; i--; ) if (undoable[i].index === index) undoable.splice(i, 1);
    byId("saved").textContent = "";
    problem(`Not saved, ${nameOf(index)}. ${error.message}`);
    update();
  });
};
const change = (part) => {
  problem("");
  const { rating, tags, note } = rowOf(present);
  undoable.push({ index: present, before: { rating, tags, note } });
  save(present, { rating, tags, note, ...part });
  update();
};
const rate = (rating) => {
  if (rating && broken.has(present)) return problem(`Not rated, ${nameOf(present)}: the figure cannot be shown.`);
  saveNote();
  change({ rating });
  if (rating && byId("advance").checked) step(1);
};
const toggle = (tag) => {
  const tags = rowOf(present).tags;
  change({ tags: content.tags.filter((each) => tags.includes(each) !== (each === tag)) });
};
const saveNote = () => {
  const note = cleanNote(byId("note").value);
  if (note !== rowOf(present).note) change({ note });
};
const undo = () => {
  const last = undoable.pop();
  if (!last) return;
  save(last.index, last.before);
  show(last.index);
};

// Order and filter.
const arrange = () => {
  const kind = byId("kind").value, only = byId("only").value;
  const fits = (index) => (kind === "" || figures[index][KIND] === Number(kind)) &&
    (only === "" || (only === "none" ? !isRated(index) : rowOf(index).rating === only));
  list = figures.map((_, index) => index).filter(fits);
  if (byId("order").value === "kind") list.sort((a, b) => figures[a][KIND] - figures[b][KIND] || a - b);
  place = new Map(list.map((index, position) => [index, position]));
};
const move = (indices, start, forward, wanted) => {
  for (let i = start + forward; i >= 0 && i < indices.length; i += forward) {
    if (wanted(indices[i])) { leave(indices[i]); return true; }
  }
  byId("saved").textContent = forward > 0 ? "this is the last one" : "this is the first one";
  return false;
};
const rank = (forward) => {
  if (place.has(present)) return place.get(present);
  const after = list.findIndex((index) => index > present);
  return (after < 0 ? list.length : after) - (forward > 0 ? 1 : 0);
};
const step = (forward) => move(list, rank(forward), forward, () => true);
const toUnrated = (forward) => {
  const open = (index) => !isRated(index);
  if (!list.some(open)) byId("saved").textContent = "all of them are rated";
  else move(list, rank(forward), forward, open) || move(list, forward > 0 ? -1 : list.length, forward, open);
};
const all = figures.map((_, index) => index);
const toRun = (forward) => move(all, present, forward, (index) =>
  figures[index][IMAGE] !== figures[present][IMAGE] && figures[index][KIND] === figures[present][KIND]);
const toKind = (forward) => move(all, present, forward, (index) => figures[index][IMAGE] === figures[present][IMAGE]);
const leave = (index) => { saveNote(); show(index); };

// Figures: neighbours are loaded and decoded before they are needed.
const loaded = new Map(), broken = new Set();
const address = (index) => {
  const figure = figures[index], folder = `${content.base}${encodeURIComponent(figure[NAME].split("_")[0])}/figures/`;
  return folder + encodeURIComponent(figure[NAME] + figure[EXTENSION]) + (online ? `?v=${figure[VERSION]}` : "");
};
const load = (index) => {
  if (!loaded.has(index)) {
    const image = new Image();
    image.alt = nameOf(index);
    image.src = address(index);
    const note = (works) => { works ? broken.delete(index) : broken.add(index); return works; };
    loaded.set(index, { image, ready: image.decode().then(() => note(true), () => note(false)) });
  }
  return loaded.get(index);
};
const preload = () => {
  const here = rank(1), near = [here + 1, here + 2, here - 1, here + 3].map((position) => list[position]);
  const wanted = new Set([present, ...near.filter((index) => index !== undefined)]);
  for (const index of loaded.keys()) if (!wanted.has(index)) loaded.delete(index);
  for (const index of wanted) load(index);
};
const select = (fragment) => {
  alternate = fragment;
  const image = byId("frame").querySelector("img");
  if (image) image.src = address(present) + fragment;
  for (const button of byId("flicker").children) {
    button.setAttribute("aria-pressed", String(button.dataset.fragment === fragment));
  }
};
const showFlicker = (kind) => {
  const choices = kind.second ? [[kind.first, ""], [kind.second, "#second"], ["alternate", "#flicker"]] : [];
  byId("flicker").hidden = !choices.length;
  byId("flicker").replaceChildren(...choices.map(([name, fragment]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.dataset.fragment = fragment;
    button.setAttribute("aria-pressed", String(!fragment));
    button.addEventListener("click", () => select(fragment));
    return button;
  }));
};
const show = async (index) => {
  present = index;
  alternate = "";
  const kind = kinds[figures[index][KIND]];
  byId("title").textContent = nameOf(index);
  byId("caption").textContent = kind.caption;
  showFlicker(kind);
  update();
  byId("note").value = rowOf(index).note;
  byId("figure").setAttribute("aria-busy", "true");
  history.replaceState(null, "", `#${figures[index][NAME]}`);
  const { image, ready } = load(index), works = await ready;
  if (present !== index) return;
  if (works && !image.src.endsWith(address(index))) image.src = address(index);  // a fragment of an earlier visit
  if (!works) { problem(`${figures[index][NAME]}${figures[index][EXTENSION]} cannot be shown.`); loaded.delete(index); }
  byId("frame").replaceChildren(image);
  byId("figure").setAttribute("aria-busy", "false");
  requestAnimationFrame(() => setTimeout(() => present === index && preload()));
};
const update = () => {
  const row = ratingOf(present), current = rowOf(present);
  for (const button of byId("ratings").children) {
    button.setAttribute("aria-pressed", String(button.dataset.rating === current.rating));
  }
  for (const button of byId("tags").children) {
    button.setAttribute("aria-pressed", String(current.tags.includes(button.dataset.tag)));
  }
  const n = all.filter(isRated).length, position = place.get(present);
  byId("bar").max = figures.length;
  byId("bar").value = n;
  byId("count").textContent = `${n} of ${figures.length} figures rated`;
  const where = position === undefined ? "not in this selection" : `${position + 1} of ${list.length}`;
  const old = row.outdated ? ` The figure has changed since it was rated as ${row.rating || "n/a"}.` : "";
  byId("position").textContent = `${where}.${old}`;
  byId("undo").disabled = !undoable.length;
};

// Controls.
const KEYS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), r: () => toRun(1), R: () => toRun(-1),
  k: () => toKind(1), K: () => toKind(-1), u: () => toUnrated(1), U: () => toUnrated(-1),
  z: undo, n: () => byId("note").focus(), 0: () => rate(""),
  x: () => byId("flicker").hidden || select(alternate === "#second" ? "" : "#second"),
};
content.ratings.forEach((name, index) => { KEYS[name[0]] = KEYS[index + 1] = () => rate(name); });
for (const name of content.tags) KEYS[name[0]] = () => toggle(name);
addEventListener("keydown", (event) => {
  const target = event.target, types = target.matches?.("input:not([type=checkbox]),textarea,select");
  if (target === byId("note") && (event.key === "Escape" || (event.key === "Enter" && event.ctrlKey))) {
    event.preventDefault();
    byId("title").focus();
    return;
  }
  if (types || event.ctrlKey || event.altKey || event.metaKey || !byId("keys").checked) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow")) return;
  action();
});
for (const button of byId("ratings").children) button.addEventListener("click", () => rate(button.dataset.rating));
for (const button of byId("tags").children) button.addEventListener("click", () => toggle(button.dataset.tag));
byId("next").addEventListener("click", () => step(1));
byId("back").addEventListener("click", () => step(-1));
byId("unrated").addEventListener("click", () => toUnrated(1));
byId("undo").addEventListener("click", undo);
byId("note").addEventListener("blur", saveNote);
for (const id of ["order", "kind", "only"]) {
  byId(id).addEventListener("change", () => {
    saveNote();
    arrange();
    place.has(present) || !list.length ? update() : show(list[0]);
    if (!list.length) byId("saved").textContent = "no such figures";
    preload();
  });
}
byId("jump").addEventListener("submit", (event) => event.preventDefault());
byId("go").addEventListener("change", () => {
  const wanted = byId("go").value.trim(), image = images.indexOf(wanted);
  const index = image < 0 ? -1 : figures.findIndex((figure) => figure[IMAGE] === image);
  index < 0 ? problem(`No run ${wanted}.`) : leave(index);
  byId("go").value = "";
});
addEventListener("beforeunload", (event) => { saveNote(); if (waiting) event.preventDefault(); });

const fillLists = () => {
  byId("kind").append(...kinds.map((kind, index) => new Option(kind.title, index)));
  byId("images").append(...images.map((name) => new Option("", name)));
};
const adopt = (kept) => {
  stored.clear();
  for (const [name, row] of kept) stored.set(name, row);
  shown = new Map(stored);
  undoable.length = 0;
  arrange();
  update();
};
if (online) byId("who").textContent = `Rater ${content.rater}`;
else {
  byId("static").hidden = false;
  byId("who").textContent = "Ratings are kept in this browser";
  const last = `neurostorm-review ${content.folder}`;
  const start = () => {
    if (byId("rater").value && byId("rater").checkValidity()) localStorage.setItem(last, byId("rater").value);
    adopt(markOutdated(readKept()));
    byId("note").value = rowOf(present).note;
  };
  byId("rater").addEventListener("change", start);
  byId("download").addEventListener("click", () => {
    if (!byId("rater").value || !byId("rater").checkValidity()) return problem("Enter the name of the rater first.");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([formatTable()], { type: "text/tab-separated-values" }));
    link.download = `rater-${byId("rater").value}_ratings.tsv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
  byId("upload").addEventListener("change", async () => {
    const file = byId("upload").files[0];
    if (!file) return;
    try {
      const label = /^rater-([A-Za-z0-9]{1,64})_ratings/.exec(file.name)?.[1];
      if (!label) throw new Error("its name is not rater-<label>_ratings.tsv");
      const found = parseTable(await file.text());
      byId("rater").value = label;
      const kept = readKept();
      for (const [name, row] of found) if (!kept.has(name) || kept.get(name).time < row.time) kept.set(name, row);
      localStorage.setItem(storageKey(), JSON.stringify([...kept]));
      start();
      problem("");
    } catch (error) {
      problem(`${file.name} was not read: ${error.message}.`);
    }
  });
  try {
    byId("rater").value = localStorage.getItem(last) ?? "";
    if (byId("rater").value) adopt(markOutdated(readKept()));
  } catch {
    problem("This browser keeps no data of files. Use neurostorm-review with a server instead.");
  }
}
fillLists();
arrange();
const linked = figures.findIndex((figure) => `#${figure[NAME]}` === location.hash);
const unrated = all.findIndex((index) => !isRated(index));
show(linked >= 0 ? linked : Math.max(unrated, 0));
