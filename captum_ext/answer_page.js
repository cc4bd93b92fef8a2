"use strict";
const RED = [230, 26, 26];
const BLUE = [26, 77, 242];
const { scale, tokens, scores, excluded, pictures } = JSON.parse(document.getElementById("data").textContent);
const words = [...document.querySelectorAll(".word")];
const buttons = [...document.querySelectorAll("#tokens button")];
const strongest = document.getElementById("strongest");
let pinned = 0; // what is shown while nothing is pointed at

const written = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3)))).replace(/-/g, "\u2212");

function luminance(color) {
  const [red, green, blue] = color.map((one) => (one <= 10.31475 ? one / 3294.6 : ((one / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** Colour a word by its share of the scale, with a text that can be read on it. */
function paint(word, share, paper) {
  const opacity = Math.min(1, Math.abs(share));
  const ink = share > 0 ? RED : BLUE;
  const seen = ink.map((one, at) => opacity * one + (1 - opacity) * paper[at]);
  word.style.backgroundColor = opacity ? `rgb(${ink.join(" ")} / ${opacity})` : "";
  word.style.color = opacity ? (luminance(seen) > 0.1791 ? "#000" : "#fff") : "";
  word.classList.toggle("beyond", Math.abs(share) > 1);
}

function show(view) {
  const paper = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).slice(0, 3).map(Number);
  const divided = view === 0 ? tokens : 1;
  words.forEach((word, at) => {
    const value = scores[view][at];
    paint(word, value / divided / scale, paper);
    const mean = divided > 1 ? `, mean ${written(value / divided)}` : "";
    word.title = excluded[at] ? "excluded" : `${written(value)}${mean}`;
  });
  for (const picture of document.querySelectorAll("img[data-picture]")) {
    picture.src = pictures[picture.dataset.picture][view];
  }
  for (const button of buttons) button.classList.toggle("shown", Number(button.dataset.view) === view);
  const order = scores[view].map((value, at) => [value, at]).sort((a, b) => b[0] - a[0]);
  const listed = (found) => found.slice(0, 3).map(([value, at]) => `\u201c${words[at].textContent.trim()}\u201d ${written(value)}`).join(", ");
  const [most, least] = [order.filter(([value]) => value > 0), order.filter(([value]) => value < 0).reverse()];
  strongest.textContent = `${view ? `\u201c${buttons[view].textContent.trim()}\u201d` : "Whole answer"} \u2013 ` + [
    most.length ? `most for it: ${listed(most)}` : "no word for it",
    least.length ? `most against it: ${listed(least)}` : "no word against it"].join("; ") + ".";
  document.body.dataset.shown = view;
}

function pin(view) {
  pinned = view;
  for (const button of buttons) button.setAttribute("aria-pressed", Number(button.dataset.view) === view);
  show(view);
}

buttons.forEach((button, view) => {
  button.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && show(view));
  button.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && show(pinned));
  button.addEventListener("focus", () => show(view));
  button.addEventListener("blur", () => show(pinned));
  button.addEventListener("click", () => pin(view));
  button.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: view - 1, ArrowRight: view + 1, ArrowUp: view - 1, ArrowDown: view + 1, Home: 0, End: -1 }[event.key];
    if (event.key === "Escape") pin(0);
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    buttons.at(to % buttons.length).focus();
  });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(Number(document.body.dataset.shown)));
show(0);
