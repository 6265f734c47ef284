// Elements, tables and texts. What is shown is only ever set as text: names come from users.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Sets a text if it is another one, so that a selection stays. */
export function text(node, value) {
  const wanted = String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Replaces an element's class if it is another one. */
export function look(node, name) {
  if (node.getAttribute("class") !== name) node.setAttribute("class", name);
}

/** Makes `parent` have an element for each item, in order; those of items that stay are kept, with the focus. */
export function follow(parent, items, key, make, update) {
  const known = parent.known ?? new Map();
  const next = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const id = key(item);
    const node = known.get(id) ?? make(item);
    next.set(id, node);
    update(node, item);
    if (node === place) {
      place = place.nextSibling;
    } else {
      parent.insertBefore(node, place);
    }
  }
  for (const [id, node] of known) if (next.get(id) !== node) node.remove();
  parent.known = next;
}

/**
 * A table. A column: `label`, `set(cell, item)`, and `kind` (class of its cells). `more(row, item)` returns a further row, or nothing.
 * Returns what updates it.
 */
export function table(host, { caption, empty, columns, key, more = () => null }) {
  const body = el("tbody");
  const heads = columns.map((column) => el("th", { scope: "col", class: column.kind ?? "" }, column.label));
  const whole = el("table", {}, el("caption", { class: "hidden" }, caption), el("thead", {}, el("tr", {}, ...heads)), body);
  const none = el("p", { class: "empty" }, empty);
  host.append(whole, none);
  const row = () => el("tr", {}, ...columns.map((column) => el("td", { class: column.kind ?? "", "data-label": column.label })));
  return (items) => {
    whole.hidden = items.length === 0;
    none.hidden = items.length > 0;
    const all = items.flatMap((item) => {
      const extra = more(item);
      return extra ? [{ id: key(item), item }, { id: `${key(item)} more`, item, extra }] : [{ id: key(item), item }];
    });
    follow(body, all, (entry) => entry.id, (entry) => {
      if (!entry.extra) return row();
      return el("tr", { class: "more" }, el("td", { colspan: columns.length }, entry.extra));
    }, (node, entry) => {
      if (entry.extra) return;
      columns.forEach((column, at) => {
        const cell = node.children[at];
        column.set(cell, entry.item);
        // Not shown where there is little room.
        cell.classList.toggle("none", cell.textContent === "–");
      });
    });
  };
}

/** A cell with a badge. */
export function badge(cell, value, state) {
  if (!cell.firstChild) cell.append(el("span"));
  look(cell.firstChild, `badge ${state}`);
  text(cell.firstChild, value);
}

/** A cell with a name and a smaller line below. */
export function named(cell, name, below) {
  if (!cell.firstChild) cell.append(el("span", { class: "name" }), el("span", { class: "sub" }));
  text(cell.firstChild, name);
  text(cell.lastChild, below);
}

/** The course of a number. */
export function spark(host, values, what) {
  if (!host.firstChild) {
    host.append(svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img" }, svg("polyline")));
  }
  const most = Math.max(...values, 1e-9);
  const step = 100 / 59;
  const from = 60 - values.length;
  const points = values.map((value, at) => `${((from + at) * step).toFixed(1)},${(23 - (value / most) * 21).toFixed(1)}`);
  const drawing = host.firstChild;
  drawing.setAttribute("aria-label", `${what}, the last two minutes`);
  drawing.firstChild.setAttribute("points", points.join(" "));
}

export function count(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(1)} G`;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return String(Math.round(value));
}

export function rate(value) {
  return `${value >= 9.95 ? count(value) : value.toFixed(1)}/s`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; value >= 1024 && at < units.length - 1; at++) value /= 1024;
  return `${at === 0 || value >= 99.5 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

export function millis(micros) {
  const value = micros / 1000;
  return value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value >= 99.5 ? Math.round(value) : value.toFixed(1)} ms`;
}

export function time(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

export function percent(part, whole) {
  const value = (100 * part) / whole;
  return part === 0 ? "0 %" : `${value >= 9.95 ? Math.round(value) : value.toFixed(value < 0.095 ? 2 : 1)} %`;
}
