// Interactive viewer of a participant's runs, with NiiVue. Loaded by the page when the viewer is opened; the data of a
// run are scripts that call neurostormViewer. All text is inserted as text, never as HTML.
(() => {
const CAUSE = "The viewer needs the folders report_assets and sub-*/figures beside this page.";
const SVG = "http://www.w3.org/2000/svg";
// Type of the view in NiiVue, and whether the 3D rendering is part of it; there, outline and patches would hide all else.
const VIEWS = { slices: [3, false], "slices and 3D": [3, true], axial: [0, false], coronal: [1, false], sagittal: [2, false], "3D": [4, true] };
const KEYS = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
const received = new Map();
window.neurostormViewer = (name, content) => received.set(name, content);

const load = (url) => new Promise((resolve, reject) => {
  const script = document.createElement("script");
  script.src = url;
  script.onload = () => { script.remove(); resolve(); };
  script.onerror = () => { script.remove(); reject(new Error(`${decodeURIComponent(url)} could not be loaded. ${CAUSE}`)); };
  document.head.append(script);
});
// Data of a file; only those of the present run are kept.
const read = async (url, name) => {
  await load(url);
  const content = received.get(name);
  received.delete(name);
  if (!content) throw new Error(`${decodeURIComponent(url)} is damaged. Run this participant again.`);
  return content;
};
const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const short = (value) => (value === null ? "n/a" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

window.openNeurostormViewer = async (place, facts) => {
  await load(facts.scripts.niivue);
  const canvas = make("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "brain viewer", "aria-label": "Slices of the brain with a crosshair. Arrow keys move it to the left, right, front and back, Page Up and Page Down up and down." });
  const controls = make("div", { className: "filters", role: "group", "aria-label": "Run and layers" });
  const stage = make("div", { className: "stage" }, canvas);
  const where = make("output", { "aria-live": "polite" });
  const region = make("div", { className: "region" });
  const scale = make("p", { className: "quiet scale" });
  place.replaceChildren(controls, stage, scale, where, region,
    make("p", { className: "quiet" }, "Click, or use the arrow keys, to move the crosshair; drag the 3D view to turn it; scroll to go through the slices. Left is left."));

  let queue = Promise.resolve();  // one change after the other, so that the last choice is what is shown
  const control = (label, element, event = "change") => {
    element.addEventListener(event, () => { queue = queue.then(() => refresh(element)).catch(fail); });
    const row = make("label", {}, `${label} `, element);
    controls.append(row);
    return element;
  };
  const menu = (choices) => make("select", {}, ...choices.map(([value, text]) => make("option", { value }, text)));
  const fill = (element, choices) => {
    element.replaceChildren(...menu(choices).children);
    element.selectedIndex = 0;
  };
  const slider = (value, max = 100) => make("input", { type: "range", min: 0, max, value });
  const run = control("Run", menu(facts.runs.map(([title], i) => [i, title])));
  run.parentElement.hidden = facts.runs.length < 2;
  const background = control("Background", menu([]));
  const view = control("View", menu(Object.keys(VIEWS).map((name) => [name, name])));
  const bold = control("BOLD opacity", slider(0), "input");
  const mask = control("Brain mask", make("input", { type: "checkbox", checked: true }));
  const patches = control("Patches of the encoder", make("input", { type: "checkbox" }));
  const overlay = control("Contributions", menu([]));
  const opacity = control("Opacity", slider(80), "input");
  const threshold = control("Threshold", slider(20, 99), "input");
  const jump = control("Go to region", menu([]));

  let layers = null, contributions = null, labels = null, limit = 0, shown = null;
  const clear = () => {
    while (nv.volumes.length) nv.removeVolumeByIndex(nv.volumes.length - 1);
    region.replaceChildren();
    scale.textContent = "";
    scale.hidden = true;
    layers = null;
  };
  const fail = (error) => {
    clear();
    where.textContent = error.message;
  };
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [0.45, 0.85, 1, 0.9], crosshairWidth: 0.6, crosshairGap: 4, fontColor: [0.8, 0.85, 0.9, 1],
    show3Dcrosshair: true, isRadiologicalConvention: false, sagittalNoseLeft: false, multiplanarShowRender: 0,
    sliceType: 3, dragAndDropEnabled: false, logLevel: "silent", loadingText: "", isOrientCube: false, scrollRequiresFocus: true, tileMargin: 4,
  });
  place.viewer = nv;
  try {
    await nv.attachToCanvas(canvas, false);
  } catch (error) {
    return fail(error);
  }
  const image = async (name, base64, options) => {
    try {
      return await niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...options });
    } catch {
      throw new Error(`The image "${name}" of ${run.selectedOptions[0].textContent} is damaged. Run this participant again.`);
    }
  };
  const readOf = (stem, adapter) => {
    const name = `${stem}_desc-${adapter}viewer_bold.js`;
    return read(facts.folder + encodeURIComponent(name), name);
  };
  const checkerboard = async (base64, patch) => {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer(), header = new DataView(buffer);
    const [nx, ny, nz] = [42, 44, 46].map((at) => header.getInt16(at, true)), values = new Uint8Array(buffer, header.getFloat32(108, true));
    for (let z = 0, at = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, at++) {
      values[at] = (Math.floor(x / patch) + Math.floor(y / patch) + Math.floor(z / patch)) % 2;
    }
    header.setFloat32(112, 1, true);
    return niivue.NVImage.new(buffer, "patches.nii", "gray", 0, null, 0.5, 1);
  };
  const openRun = async () => {
    const [, stem, adapters] = facts.runs[Number(run.value)];
    const data = await readOf(stem, "");
    const choices = [];
    const grounds = {};
    if (data.anatomy) {
      try {
        grounds.T1w = (await read(facts.folder + encodeURIComponent(data.anatomy), data.anatomy)).image;
        choices.push(["T1w", "T1w image"]);
      } catch { /* an output folder from which the anatomy was removed: the template serves */ }
    }
    grounds.template ??= (await read(facts.scripts.template, "viewer")).image;
    grounds.bold = data.bold;
    choices.push(["template", "template"], ["bold", "mean BOLD image"]);
    const before = background.value;
    fill(background, choices);
    if (choices.some(([value]) => value === before)) background.value = before;
    const wanted = overlay.value;
    fill(overlay, [...adapters.map((name) => [name, name]), ["", "none"]]);
    if (adapters.includes(wanted)) overlay.value = wanted;
    for (const element of [overlay, opacity, threshold, jump]) element.parentElement.hidden = !adapters.length;
    layers = { grounds, data };
    await openOverlay();
  };
  const openOverlay = async () => {
    if (!layers) return;
    let problem = "";
    contributions = labels = null;
    if (overlay.value) {
      try {
        const found = await readOf(facts.runs[Number(run.value)][1], overlay.value);
        labels = await image("labels", found.labels, {});
        contributions = found;
      } catch (error) {
        problem = error.message;
        overlay.value = "";
      }
    }
    const present = contributions ? contributions.regions.map((one, i) => [one, i]).filter(([one]) => one.value !== null && one.at) : [];
    present.sort(([a], [b]) => Math.abs(b.value) - Math.abs(a.value));
    fill(jump, [["", "choose"], ...present.map(([one, i]) => [String(i), one.name])]);
    limit = Math.max(0, ...present.map(([one]) => Math.abs(one.value)));
    await compose();
    if (problem) where.textContent = problem;
  };
  const compose = async () => {
    if (!layers) return;
    const { grounds, data } = layers;
    const base = await image("background", grounds[background.value], { colormap: "gray" });
    const found = [base, await image("BOLD", data.bold, { colormap: "gray", opacity: 0 }), await checkerboard(data.bold, data.patch)];
    found.push(await image("mask", data.mask, { colormap: "green", cal_min: 0.5, cal_max: 1, opacity: 0 }));
    if (contributions) {
      const map = await image("contributions", contributions.map, { colormap: "warm", colormapNegative: "winter", opacity: 0 });
      limit = Math.max(Math.abs(map.global_min), Math.abs(map.global_max)) || 1;
      found.push(map);
    }
    const keep = layers, mm = shown ?? contributions?.peak ?? [0, -20, 10];
    clear();
    layers = keep;
    for (const one of found) nv.addVolume(one);
    style();
    go(mm);
    place.dataset.ready = String(Number(place.dataset.ready || 0) + 1);
  };
  const style = () => {
    if (!layers) return;
    const [, mean, board, outline, map] = nv.volumes;
    mean.opacity = Number(bold.value) / 100;
    mask.disabled = patches.disabled = VIEWS[view.value][1];
    board.opacity = patches.checked && !patches.disabled ? 0.25 : 0;
    outline.opacity = mask.checked && !mask.disabled ? 0.9 : 0;
    if (map) {
      map.opacity = Number(opacity.value) / 100;
      map.cal_min = (limit * Number(threshold.value)) / 100;
      map.cal_max = limit;
      const least = short(map.cal_min), most = short(limit);
      scale.textContent = `Colours: contributions from ${least} (dark) to ${most} ${contributions.unit} (bright); red and yellow for, blue and green against${contributions.answer ? ` ${contributions.answer}` : ""}.`;
    }
    scale.hidden = !map;
    opacity.setAttribute("aria-valuetext", `${opacity.value} %`);
    bold.setAttribute("aria-valuetext", `${bold.value} %`);
    threshold.setAttribute("aria-valuetext", `${threshold.value} % of the largest contribution`);
    nv.updateGLVolume();
  };
  const go = (mm) => {
    if (!nv.volumes.length) return;
    nv.scene.crosshairPos = nv.mm2frac(mm).map((share) => Math.min(1, Math.max(0, share)));
    nv.createOnLocationChange();
    nv.drawScene();
  };
  const refresh = async (element) => {
    if (element === run) {
      clear();
      await openRun();
    } else if (element === overlay) await openOverlay();
    else if (element === background) await compose();
    else if (element === view) {
      nv.opts.multiplanarShowRender = VIEWS[view.value][1] ? 1 : 0;
      nv.setSliceType(VIEWS[view.value][0]);
      stage.className = view.value === "slices" ? "stage" : "stage tall";
      style();
    }
    else if (element === jump) { if (jump.value) go(contributions.regions[Number(jump.value)].at); }
    else style();
  };

  // Time course of a region, with its contribution.
  const course = (index) => {
    const { points, seconds, seriesUnit, series, regions } = contributions, one = regions[index];
    const values = new Int8Array(bytesOf(series).buffer, index * points, points), step = (one.peak ?? 0) / 127;
    const svg = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "polyline"), zero = document.createElementNS(SVG, "line");
    const text = `Time course of ${one.name}: ${points} points in ${Math.round(points * seconds)} s, ${short(-(one.peak ?? 0))} to ${short(one.peak ?? 0)} ${seriesUnit}`;
    svg.setAttribute("viewBox", "0 0 600 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", text);
    for (const [name, value] of Object.entries({ x1: 0, x2: 600, y1: 50, y2: 50 })) zero.setAttribute(name, value);
    line.setAttribute("points", [...values].map((value, i) => `${((600 * (i + 0.5)) / points).toFixed(1)},${(50 - (47 * value) / 127).toFixed(1)}`).join(" "));
    svg.append(zero, line);
    return [svg, make("p", { className: "quiet" }, `${text}.`)];
  };
  nv.onLocationChange = (location) => {
    if (!location.values.length) return;
    const [x, y, z] = shown = [...location.mm].slice(0, 3);
    const mean = location.values.find((one) => one.name.startsWith("BOLD"))?.value ?? 0;
    const at = `x = ${Math.round(x)}, y = ${Math.round(y)}, z = ${Math.round(z)} mm; mean BOLD ${mean ? short(mean) : "outside the brain"}`;
    if (!contributions) {
      where.textContent = `${at}.`;
      region.replaceChildren();
      return;
    }
    const label = labels.getValue(...labels.mm2vox([x, y, z])), one = contributions.regions[label - 1];
    where.textContent = `${at}; ${one ? one.name : `no region of ${contributions.atlas}`}.`;
    if (!one) return region.replaceChildren();
    const about = contributions.answer ? ` to ${contributions.answer}` : "";
    const p = one.p === null ? "" : `, p = ${one.p.toFixed(3)}`;
    const deviation = one.deviation === null ? "one clip" : `SD over clips ${short(one.deviation)}`;
    const text = one.value === null ? "no voxel with signal" : `contribution${about} ${one.value > 0 ? "+" : ""}${short(one.value)} ${contributions.unit} (${deviation}${p})`;
    region.replaceChildren(make("p", {}, make("strong", {}, one.name), `: ${text}.`), ...(one.peak === null ? [] : course(label - 1)));
  };
  canvas.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey || !nv.volumes.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    go(shown.map((value, axis) => value + 2 * step[axis]));
  }, true);
  queue = queue.then(openRun).catch(fail);
  await queue;
};
})();
