"use strict";
// Filters, sorts, searches, folds and changes colours. All content is in the page already; nothing
// is ever made from text as markup.

const root = document.documentElement;
root.classList.add("js");

// A page that is opened from disk may have no storage; the choice then lasts as long as the page.
const kept = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* lasts as long as the page */ } },
};
const themes = ["auto", "light", "dark"];
let theme = themes.includes(kept.get("sailplan-theme")) ? kept.get("sailplan-theme") : "auto";

function setTheme(name) {
  theme = name;
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  kept.set("sailplan-theme", name);
}
setTheme(theme);

const all = (query, inside = document) => [...inside.querySelectorAll(query)];
const at = (id) => document.getElementById(id);

document.addEventListener("DOMContentLoaded", () => {
  startTheme();
  startFolds();
  startPictures();
  startCopying();
  if (at("list")) startSamples();
});

function startTheme() {
  const button = at("theme");
  const show = () => {
    at("theme-name").textContent = theme;
    button.setAttribute("aria-label", `Colours: ${theme}`);
  };
  button.addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(theme) + 1) % themes.length]);
    show();
  });
  show();
}

function fold(button, open) {
  const text = button.parentElement.querySelector(".text.long");
  text.classList.toggle("folded", !open);
  button.setAttribute("aria-expanded", String(open));
  button.textContent = open ? "Show less" : "Show all";
}

function startFolds() {
  for (const button of all(".fold")) {
    fold(button, false);
    button.addEventListener("click", () => {
      fold(button, button.getAttribute("aria-expanded") === "false");
      button.scrollIntoView({ block: "nearest" });
    });
  }
}

function startPictures() {
  for (const image of all("img.again")) image.src = at(`picture-${image.dataset.picture}`).src;
}

function startCopying() {
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      const from = at(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(from.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(from);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
}

function startSamples() {
  const list = at("list");
  const samples = all(".sample", list);
  const texts = new Map(samples.map((sample) => [sample, all("[data-search]", sample)]));
  const search = at("search"), order = at("order"), score = at("score"), side = at("side");
  let filter = "all";

  const chosenSide = () => (side ? side.value : samples.some((one) => one.querySelector('[data-side="1"]')) ? "1" : "0");
  const cellOf = (sample) => sample.querySelector(`[data-side="${chosenSide()}"]`);

  /** How much better a sample's answer is than the base's, or null where that is not known. */
  function gainOf(sample) {
    if (!score) return null;
    const mark = all("[data-gain]", cellOf(sample)).find((one) => one.dataset.score === score.value);
    return mark ? Number(mark.dataset.gain) : null;
  }

  const kinds = {
    all: () => true,
    better: (sample) => gainOf(sample) > 0,
    worse: (sample) => gainOf(sample) < 0,
    equal: (sample) => gainOf(sample) === 0,
    exact: (sample) => cellOf(sample).hasAttribute("data-exact"),
  };

  const number = (sample) => Number(sample.dataset.number);
  const longest = (sample) => Number(sample.dataset.longest);
  const orders = {
    data: (one, other) => number(one) - number(other),
    gain: (one, other) => (gainOf(other) ?? -Infinity) - (gainOf(one) ?? -Infinity),
    loss: (one, other) => (gainOf(one) ?? Infinity) - (gainOf(other) ?? Infinity),
    long: (one, other) => longest(other) - longest(one),
    short: (one, other) => longest(one) - longest(other),
  };

  /** Every place where the words are, as ranges, one for each piece of text that it goes over. */
  function find(words, sample) {
    const wanted = new RegExp(words.replace(/[.*+?^${}()|[\]\\\/-]/g, "\\$&").replace(/\s+/g, "\\s+"), "gi");
    return texts.get(sample).flatMap((text) => {
      const found = findIn(text, wanted);
      if (found.length) all(".fold", text.parentElement).forEach((button) => fold(button, true));
      return found;
    });
  }

  function findIn(text, wanted) {
    // What only the reference has is shown inside an answer, but is no part of it.
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT, (node) =>
      node.parentElement.closest("del") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
    const nodes = [];
    let whole = "";
    while (walker.nextNode()) {
      nodes.push({ node: walker.currentNode, start: whole.length });
      whole += walker.currentNode.data;
    }
    return [...whole.matchAll(wanted)].map((match) => {
      const from = match.index, to = from + match[0].length;
      return nodes.filter(({ node, start }) => start < to && start + node.length > from).map(({ node, start }) => {
        const range = document.createRange();
        range.setStart(node, Math.max(0, from - start));
        range.setEnd(node, Math.min(node.length, to - start));
        return range;
      });
    });
  }

  function showGains() {
    for (const mark of all("ul.marks li", list)) mark.classList.toggle("chosen", Boolean(score) && mark.dataset.score === score.value);
    if (!score) return;
    const title = score.selectedOptions[0].textContent;
    for (const sample of samples) {
      const gain = gainOf(sample);
      let shown = sample.querySelector("h3 .gain");
      if (!shown) {
        shown = document.createElement("span");
        sample.querySelector("h3").append(shown);
      }
      shown.className = `gain ${gain > 0 ? "better" : gain < 0 ? "worse" : ""}`;
      shown.textContent = gain === null ? "" : gain === 0 ? `${title} equal` : `${gain > 0 ? "▲ better" : "▼ worse"} in ${title}`;
    }
  }

  function show() {
    const words = search.value.trim();
    const places = [];
    const found = samples.filter((sample) => {
      const hits = words ? find(words, sample) : [];
      places.push(...hits);
      return !words || hits.length;
    });
    const shown = new Set(found.filter(kinds[filter]));
    for (const sample of samples) sample.classList.toggle("out", !shown.has(sample));
    for (const button of all("[data-filter]")) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
      button.querySelector(".many").textContent = found.filter(kinds[button.dataset.filter]).length;
    }
    if (window.CSS && CSS.highlights) CSS.highlights.set("found", new Highlight(...places.flat()));
    const among = shown.size === samples.length ? `${samples.length} samples` : `${shown.size} of ${samples.length} samples`;
    at("tally").textContent = words ? `${among}, found ${places.length} time${places.length === 1 ? "" : "s"}` : among;
    at("none").hidden = shown.size > 0;
  }

  function sort() {
    const inOrder = [...samples].sort((one, other) => orders[order.value](one, other) || orders.data(one, other));
    list.append(...inOrder);
  }

  function again() {
    showGains();
    sort();
    show();
  }

  function step(by) {
    const shown = all(".sample:not(.out)", list);
    const current = document.activeElement?.closest?.(".sample");
    const here = shown.indexOf(current);
    const next = here >= 0 ? here + by : by > 0 ? 0 : shown.length - 1;
    shown[Math.max(0, Math.min(shown.length - 1, next))]?.focus();
  }

  function setDifferences(on) {
    root.classList.toggle("plain", !on);
    at("differences").setAttribute("aria-pressed", String(on));
  }

  const toggleDifferences = () => setDifferences(root.classList.contains("plain"));
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 120);
  });
  at("filters").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) { filter = button.dataset.filter; show(); }
  });
  for (const select of [score, side, order]) select?.addEventListener("change", again);
  at("differences").addEventListener("click", toggleDifferences);
  at("clear").addEventListener("click", () => {
    search.value = "";
    filter = "all";
    show();
    search.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === search) {
      search.value = "";
      show();
      search.blur();
    }
    if (event.target.closest?.("input, select, textarea")) return;
    const actions = { "/": () => search.focus(), j: () => step(1), k: () => step(-1), d: toggleDifferences };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  });
  again();
}
