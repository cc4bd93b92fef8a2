// Values of maps under the pointer, in all maps at once; and files that the page made, saved by the browser.
(() => {
  "use strict";

  const known = new WeakMap();
  const number = value => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toPrecision(3);

  function valuesOf(frame) {
    const text = frame.dataset.values;
    if (known.get(frame)?.text !== text) {
      const bytes = Uint8Array.from(atob(text), one => one.charCodeAt(0));
      known.set(frame, {text, values: new Float32Array(bytes.buffer)});
    }
    return known.get(frame).values;
  }

  const within = (at, count) => Math.max(0, Math.min(count - 1, Math.floor(at * count)));

  // x, y: parts of the width and height
  function show(frame, x, y) {
    const rows = Number(frame.dataset.rows), columns = Number(frame.dataset.columns);
    const row = within(y, rows), column = within(x, columns);
    const value = valuesOf(frame)[row * columns + column];
    const cell = frame.querySelector(".xd-cell"), output = frame.parentElement.querySelector(".xd-value");
    cell.hidden = false;
    cell.style.cssText = `left:${100 * column / columns}%;top:${100 * row / rows}%;`
      + `width:${100 / columns}%;height:${100 / rows}%`;
    const share = Math.round(100 * Math.abs(value) / Number(frame.dataset.scale));
    output.textContent = `${number(value)} (${share} %)`;
    output.dataset.value = String(value);
    output.title = `row ${row + 1} of ${rows}, column ${column + 1} of ${columns}; ${share} % of full colour`;
    Object.assign(frame.dataset, {x, y});
  }

  function showAll(frame, x, y) {
    for (const one of frame.closest(".xd-result").querySelectorAll(".xd-frame")) show(one, x, y);
  }

  function hideAll(result) {
    for (const cell of result.querySelectorAll(".xd-cell")) cell.hidden = true;
    for (const output of result.querySelectorAll(".xd-value")) output.textContent = "\u00a0";
  }

  function pointed(event) {
    const frame = event.target.closest?.(".xd-frame");
    if (!frame) return;
    const box = frame.getBoundingClientRect();
    showAll(frame, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  for (const kind of ["pointerdown", "pointermove"]) document.addEventListener(kind, pointed);

  document.addEventListener("pointerout", event => {
    const frame = event.pointerType === "mouse" && event.target.closest?.(".xd-frame");
    if (frame && !frame.contains(event.relatedTarget)) hideAll(frame.closest(".xd-result"));
  });

  const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  document.addEventListener("keydown", event => {
    const frame = event.target.closest?.(".xd-frame"), step = STEPS[event.key];
    if (!frame || !step) return;
    event.preventDefault();
    const rows = Number(frame.dataset.rows), columns = Number(frame.dataset.columns);
    const start = frame.dataset.x === undefined;
    const column = start ? 0 : within(Number(frame.dataset.x), columns) + step[0];
    const row = start ? 0 : within(Number(frame.dataset.y), rows) + step[1];
    showAll(frame, (Math.max(0, Math.min(columns - 1, column)) + .5) / columns,
      (Math.max(0, Math.min(rows - 1, row)) + .5) / rows);
    frame.setAttribute("aria-description", frame.parentElement.querySelector(".xd-value").textContent);
  });

  // Gradio puts new maps into the elements of old ones: values that are shown are those of the new ones;
  // and samples are called what is written on them
  new MutationObserver(changes => {
    for (const {type, target} of changes) {
      if (type !== "attributes") continue;
      if (target.querySelector(".xd-cell").hidden) target.parentElement.querySelector(".xd-value").textContent = "\u00a0";
      else show(target, Number(target.dataset.x), Number(target.dataset.y));
    }
    for (const button of document.querySelectorAll("#xd-samples button:has(.caption-label)")) {
      const name = "Sample: " + button.querySelector(".caption-label").textContent.trim();
      if (button.getAttribute("aria-label") !== name) button.setAttribute("aria-label", name);
    }
  }).observe(document.documentElement, {childList: true, subtree: true, attributeFilter: ["data-values"]});

  // where the result lies below the choices, show it
  window.xdReveal = () => {
    if (innerWidth < 768) document.getElementById("xd-status")?.scrollIntoView({behavior: "smooth", block: "start"});
  };

  // text: the name of a file, a line break, and its bytes in base 64
  window.xdSave = text => {
    const [name, data] = (text || "").split("\n");
    if (!data) return;
    const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes]));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
})();
