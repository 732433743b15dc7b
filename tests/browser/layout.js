// Returns what sticks out of its box or of the window, and which texts lie over each other.
() => {
  scrollTo(0, 0);  // what sticks to the window lies over the rest once one scrolls
  const faults = [];
  const told = (element, text = "") => `<${element.tagName.toLowerCase()} class="${element.getAttribute("class") ?? ""}"> ${(text || element.textContent).trim().slice(0, 40)}`;
  const isShown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !element.closest(".unseen");
  const clips = (style, axis) => style[`overflow${axis}`] !== "visible";

  // The part of the page in which what an element holds can be seen: its own box and those around
  // it, as far as they cut off or scroll.
  const windows = new Map([[document.body, { left: -Infinity, right: Infinity, top: -Infinity, bottom: Infinity }]]);
  function windowOf(element) {
    if (windows.has(element)) return windows.get(element);
    let { left, right, top, bottom } = windowOf(element.parentElement);
    const style = getComputedStyle(element);
    if (style.display !== "inline" && !(element instanceof SVGElement)) {
      const box = element.getBoundingClientRect();
      if (clips(style, "X")) { left = Math.max(left, box.left); right = Math.min(right, box.right); }
      if (clips(style, "Y")) { top = Math.max(top, box.top); bottom = Math.min(bottom, box.bottom); }
    }
    windows.set(element, { left, right, top, bottom });
    return windows.get(element);
  }
  function seen(rect, element) {
    const around = windowOf(element);
    return { left: Math.max(rect.left, around.left), right: Math.min(rect.right, around.right), top: Math.max(rect.top, around.top), bottom: Math.min(rect.bottom, around.bottom) };
  }

  // What may not lie over each other.
  const lines = [];

  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) faults.push(`page: ${document.documentElement.scrollWidth} px wide, the window ${width}`);

  for (const element of document.body.querySelectorAll("*")) {
    if (!isShown(element) || element.closest("svg")) continue;
    const style = getComputedStyle(element);
    if (style.display.startsWith("inline") && !["IMG", "BUTTON", "INPUT", "SELECT"].includes(element.tagName)) continue;
    const box = element.getBoundingClientRect();
    if (!box.width || element.classList.contains("skip")) continue;
    const shown = seen(box, element.parentElement);
    if (shown.right - shown.left > 0 && (shown.right > width + 1 || shown.left < -1)) faults.push(`out of the window: ${told(element)}`);
    if (["IMG", "BUTTON", "INPUT", "SELECT"].includes(element.tagName)) lines.push({ element, text: element.tagName, ...shown });
    // What is wider than its box: sticks out, or is cut off without a way to see it.
    const isScrolled = ["auto", "scroll"].includes(style.overflowX);
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth && !isScrolled && !["INPUT", "SELECT"].includes(element.tagName)) faults.push(`wider than its box: ${told(element)}`);
    const isFolded = element.classList.contains("folded");
    if (element.scrollHeight > element.clientHeight + 1 && style.overflowY === "hidden" && !isFolded) faults.push(`cut off below: ${told(element)}`);
  }

  // Every line of every text, too.
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "TITLE", "OPTION"].includes(element.tagName) || !isShown(element) || element.closest(".skip")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const holder = element.closest("svg") ?? (getComputedStyle(element).display === "inline" ? element.parentElement : element);
    const box = holder.getBoundingClientRect();
    for (const rect of range.getClientRects()) {
      if (rect.width < 1 || rect.height < 1) continue;
      const part = seen(rect, element);
      if (part.right - part.left < 1 || part.bottom - part.top < 1) continue;
      if (part.right > width + 1 || part.left < -1) faults.push(`text out of the window: ${told(element, node.data)}`);
      // A space at the end of a line hangs over its end, and is not seen.
      const room = parseFloat(getComputedStyle(element).fontSize) / 2;
      const isOutside = part.right > box.right + room || part.left < box.left - room || part.bottom > box.bottom + rect.height / 3;
      if (isOutside && getComputedStyle(holder).display !== "inline" && !element.closest("svg")) faults.push(`text out of its box: ${told(element, node.data)}`);
      // Letters fill the middle of their line: the space of the font above and below may overlap.
      const height = part.bottom - part.top;
      lines.push({ element, text: node.data, left: part.left + 1, right: part.right - 1, top: part.top + height / 4, bottom: part.bottom - height / 4 });
    }
  }
  // The text of a button lies in it; a hint in its input.
  const isIn = (one, other) => one.tagName === "BUTTON" && one.contains(other);
  const belong = (one, other) => isIn(one, other) || isIn(other, one) || [one, other].every((element) => element.closest(".find"));
  lines.sort((one, other) => one.top - other.top);
  lines.forEach((one, index) => {
    for (let next = index + 1; next < lines.length && lines[next].top < one.bottom; next += 1) {
      const other = lines[next];
      if (other.left < one.right && one.left < other.right && other.element !== one.element && !belong(one.element, other.element)) faults.push(`over each other: ${told(one.element, one.text)} | ${told(other.element, other.text)}`);
    }
  });
  return [...new Set(faults)];
}
