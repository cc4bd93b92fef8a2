"use strict";
const byId = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

// Sorting: the first click puts the best first, the next one reverses; what has no value stays last.

function sortBy(table, column, head) {
  const reverse = { ascending: "descending", descending: "ascending" };
  const order = reverse[head.getAttribute("aria-sort")] || head.dataset.first;
  const sign = order === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  const key = (row) => {
    const value = row.cells[column].dataset.value;
    return column === 0 ? value : value === undefined ? NaN : Number(value);
  };
  const compare = (a, b) => {
    if (column === 0) return sign * a.localeCompare(b, "en", { numeric: true });
    return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b);
  };
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
}

const table = byId("scores"); // none on a page of several models
[...(table ? table.tHead.rows[0].cells : [])].forEach((head, column) =>
  head.querySelector("button").addEventListener("click", () => sortBy(table, column, head)));

// Legends: a box hides its method in all plots.

for (const box of document.querySelectorAll("input[data-line]")) {
  box.addEventListener("change", () => {
    const line = box.dataset.line;
    for (const same of document.querySelectorAll(`input[data-line="${line}"]`)) same.checked = box.checked;
    for (const part of document.querySelectorAll(`.plot [id$="-line${line}"], .plot [id$="-band${line}"]`)) {
      part.classList.toggle("off", !box.checked);
    }
  });
}

byId("copy").addEventListener("click", async () => {
  const command = byId("command");
  try {
    await navigator.clipboard.writeText(command.textContent);
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(command); // to be copied by hand
    byId("copy").textContent = "Selected";
  }
});

// A link into what is folded opens it.

function unfold() {
  let target = null;
  try {
    target = byId(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return; // a lone % in the address
  }
  const folded = target && target.closest("details");
  if (folded) {
    folded.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", unfold);
unfold();

// Gallery

const RED = [230, 26, 26];
const BLUE = [26, 77, 242];
const MISSING = -128;
const { methods, pictures, sparse } = JSON.parse(byId("data").textContent);
const chosen = { picture: 0, class: 0, raw: false };
const cursor = { x: 0.5, y: 0.5, on: false };
let tiles = []; // of the maps that are shown: what writes the value at the cursor
let latest = 0;

/** The maps of a picture as {class: {method: {height, width, values}}}, and the largest absolute values. */
function decoded(picture) {
  if (picture.decoded) return picture.decoded;
  const largest = new Map();
  const maps = {};
  for (const [index, own] of Object.entries(picture.maps)) {
    maps[index] = {};
    for (const [method, [height, width, scale, code]] of Object.entries(own)) {
      const codes = Int8Array.from(atob(code), (one) => one.charCodeAt(0));
      const values = Float64Array.from(codes, (one) => (one === MISSING ? NaN : one * scale));
      const top = values.reduce((high, one) => (Math.abs(one) > high ? Math.abs(one) : high), 0);
      maps[index][method] = { height, width, values };
      largest.set(method, Math.max(largest.get(method) || 0, top));
    }
  }
  picture.decoded = { maps, largest, top: Math.max(0, ...largest.values()) };
  return picture.decoded;
}

/** Which of so many cells lies at a fraction of their length. */
const cellAt = (fraction, count) => Math.min(count - 1, Math.floor(fraction * count));

/** The value of a map at fractions of its width and height. */
const valueAt = (map, x, y) => map.values[cellAt(y, map.height) * map.width + cellAt(x, map.width)];

/** As many digits as the 8-bit values have. */
function written(value, largest) {
  if (Number.isNaN(value)) return "not a number";
  if (!largest || value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(largest)));
  const text = digits > 6 ? value.toExponential(1) : value.toFixed(digits);
  return text.replace(/-/g, "\u2212");
}

/** Lay the map over the pale grey image: red for positive, blue for negative, zero transparent. */
function paint(canvas, source, map, largest) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  if (!map) return;
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const { data: pixels, width, height } = image;
  const cells = Int32Array.from({ length: width }, (_, column) => cellAt((column + 0.5) / width, map.width));
  for (let at = 0, row = 0; row < height; row += 1) {
    const start = cellAt((row + 0.5) / height, map.height) * map.width;
    for (let column = 0; column < width; column += 1, at += 4) {
      const pale = 185 + 0.25 * ((pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3);
      const value = map.values[start + cells[column]] / (largest || 1);
      const opacity = Math.min(1, Math.abs(value || 0));
      const ink = value > 0 ? RED : BLUE;
      for (let i = 0; i < 3; i += 1) pixels[at + i] = (1 - opacity) * pale + opacity * ink[i];
    }
  }
  context.putImageData(image, 0, 0);
}

/** A titled canvas with the image, or with a map over it. */
function tile(title, source, map, largest) {
  const frame = make("div", { className: "frame" });
  const box = make("div", { className: "tile" }, make("h3", { textContent: title }), frame);
  const enlarged = Math.max(1, Math.ceil(256 / Math.max(source.naturalWidth, source.naturalHeight)));
  const canvas = make("canvas", { width: enlarged * source.naturalWidth, height: enlarged * source.naturalHeight });
  canvas.setAttribute("aria-hidden", "true");
  frame.append(canvas, make("i", { className: "across" }), make("i", { className: "down" }));
  paint(canvas, source, map, largest);
  return box;
}

/** A method's tile; `own` is its largest absolute value in this image. */
function methodTile(method, title, source, map, largest, own) {
  if (!map) {
    const frame = make("div", { className: "frame none", textContent: "no map" });
    frame.style.aspectRatio = `${source.naturalWidth} / ${source.naturalHeight}`;
    return make("div", { className: "tile" }, make("h3", { textContent: title }), frame);
  }
  const box = tile(title, source, map, largest);
  box.dataset.method = method;
  const value = make("p");
  box.append(value);
  tiles.push(() => {
    const here = valueAt(map, cursor.x, cursor.y);
    const share = `(${written(own ? here / own : 0, 1)})`;
    value.replaceChildren(`${written(here, own)} `, make("small", { textContent: share }));
    return `${title} ${written(here, own)} ${share}`;
  });
  return box;
}

/** Draw the chosen picture's maps of the chosen class. */
async function draw() {
  const turn = (latest += 1);
  const picture = pictures[chosen.picture];
  const source = make("img", { src: picture.image });
  await source.decode();
  if (turn !== latest) return; // chosen anew meanwhile
  const { maps, largest, top } = decoded(picture);
  const own = maps[picture.classes[chosen.class]?.[0]] || {};
  tiles = [];
  const made = (method) => !sparse || Object.values(maps).some((all) => method in all); // of several models some have none
  const scaleOf = (method) => (chosen.raw ? top : largest.get(method));
  byId("maps").replaceChildren(
    tile(picture.sample, source),
    ...methods.filter(([method]) => made(method)).map(([method, title]) =>
      methodTile(method, title, source, own[method], scaleOf(method), largest.get(method))));
  const end = chosen.raw ? written(top, top) : "1";
  byId("low").textContent = end === "0" ? end : `\u2212${end}`;
  byId("high").textContent = end;
  byId("bar").setAttribute("aria-label", `Colours: from blue at minus ${end} through white at 0 to red at ${end}`);
  byId("scale-note").textContent = chosen.raw
    ? "Raw values of all methods on one scale: it ends at the largest absolute value of all maps of this image."
    : "One scale: each map in units of its method\u2019s largest absolute value over the classes of this image.";
  byId("maps").dataset.shown = `${chosen.picture} ${chosen.class} ${chosen.raw ? "raw" : "relative"}`;
  write();
}

let spoken = 0;
/** Show the cursor in all maps, and the values there. */
function write() {
  const maps = byId("maps");
  maps.classList.toggle("at", cursor.on);
  if (!cursor.on) return;
  maps.style.setProperty("--x", cursor.x);
  maps.style.setProperty("--y", cursor.y);
  const said = tiles.map((show) => show());
  const [width, height] = pictures[chosen.picture].size;
  const place = `Column ${Math.floor(cursor.x * width) + 1} of ${width}, row ${Math.floor(cursor.y * height) + 1} of ${height}`;
  clearTimeout(spoken);
  spoken = setTimeout(() => { byId("live").textContent = `${place}: ${said.join(", ")}`; }, 250);
}

function choose(changes) {
  Object.assign(chosen, changes);
  draw();
}

/** Radio buttons in a box; returns them. */
function radios(box, name, labels, pick) {
  const inputs = labels.map((label, at) => {
    const input = make("input", { type: "radio", name, checked: at === 0 });
    input.addEventListener("change", () => pick(at));
    box.append(make("label", {}, input, label));
    return input;
  });
  return inputs;
}

function showPicture(at) {
  const { classes, target } = pictures[at];
  const labels = classes.map(([index, label]) =>
    make("span", { textContent: index === target ? `${label} (target)` : label }));
  byId("classes").replaceChildren();
  radios(byId("classes"), "class", labels, (index) => choose({ class: index }));
  choose({ picture: at, class: 0 });
}

function startGallery() {
  const images = pictures.map(({ sample, image }) => make("img", { src: image, alt: sample, title: sample }));
  const inputs = radios(byId("pictures"), "picture", images, showPicture);
  inputs.forEach((input, at) => { input.parentElement.id = `picture-${at}`; });
  const select = (at) => {
    inputs[at].checked = true;
    inputs[at].parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
    showPicture(at);
  };
  const linked = (hash) => inputs.findIndex((input) => `#${input.parentElement.id}` === hash);
  const step = (by) => select((chosen.picture + by + pictures.length) % pictures.length);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("scale").addEventListener("change", (event) => choose({ raw: event.target.value === "raw" }));
  byId("maps").addEventListener("pointermove", follow);
  byId("maps").addEventListener("pointerdown", follow);
  byId("maps").addEventListener("keydown", move);
  document.addEventListener("click", (event) => { // on a link to a picture, which may be in the address already
    const at = linked(event.target.closest("a")?.hash);
    if (at >= 0) select(at);
  });
  if (linked(location.hash) >= 0) {
    select(linked(location.hash));
    byId(location.hash.slice(1)).scrollIntoView();
  } else {
    showPicture(0);
  }
}

function follow(event) {
  const frame = event.target.closest(".frame:not(.none)");
  if (!frame) return;
  const { left, top, width, height } = frame.getBoundingClientRect();
  const clip = (fraction) => Math.min(0.9999, Math.max(0, fraction));
  Object.assign(cursor, { x: clip((event.clientX - left) / width), y: clip((event.clientY - top) / height), on: true });
  write();
}

function move(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!steps || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const sizes = Object.values(decoded(pictures[chosen.picture]).maps).flatMap((own) => Object.values(own));
  const far = event.shiftKey ? 5 : 1;
  const stepped = (fraction, by, count) => { // from the middle of a cell of the finest map to another
    const cell = Math.floor(fraction * count) + far * by;
    return (Math.min(count - 1, Math.max(0, cell)) + 0.5) / count;
  };
  const finest = (side) => Math.max(1, ...sizes.map((map) => map[side]));
  cursor.x = stepped(cursor.x, cursor.on ? steps[0] : 0, finest("width"));
  cursor.y = stepped(cursor.y, cursor.on ? steps[1] : 0, finest("height"));
  cursor.on = true;
  write();
}

if (pictures.length) startGallery();
