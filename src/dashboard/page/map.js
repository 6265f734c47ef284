// The nodes around this one, with the tunnel to each and the tasks on each.

import { bytes, el, follow, look, svg, text, time } from "./parts.js";

const WIDTH = 1000;
const HEIGHT = 360;
/** Of a row of nodes. */
const ROW = 104;
/** More nodes than these are in the table alone. */
const MOST = 17;
const MOST_TASKS = 24;
/** WireGuard renews a session that is used after two minutes. */
const FRESH = 180;

/** The state of the tunnel to a node: how it looks, and a word. */
export function tunnel(node) {
  if (node.here) return ["", "this node"];
  if (node.path === "none" || node.handshake_seconds === null) return ["bad", "no handshake yet"];
  if (node.handshake_seconds > FRESH) return ["warn", `silent for ${time(node.handshake_seconds)}`];
  return ["ok", "up"];
}

export function taskLook(state) {
  if (state === "running" || state === "complete") return "ok";
  return ["failed", "rejected", "orphaned"].includes(state) ? "bad" : "warn";
}

/** Where the nodes are; with one or two others all are in a row. */
function places(here, others, height) {
  const [cx, cy] = [others.length === 1 ? WIDTH / 2 - 200 : WIDTH / 2, height / 2];
  const at = new Map([[here.id, [cx, cy]]]);
  others.forEach((node, number) => {
    if (others.length === 1) return at.set(node.id, [cx + 400, cy]);
    const angle = others.length === 2 ? Math.PI * (1 - number) : -Math.PI / 2 + (2 * Math.PI * number) / others.length;
    return at.set(node.id, [cx + 370 * Math.cos(angle), cy + 132 * Math.sin(angle)]);
  });
  return at;
}

function legend() {
  const line = (name, label) =>
    el("span", {}, svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, svg("line", { class: `tunnel ${name}`, x1: 0, x2: 26, y1: 5, y2: 5 })), label);
  const square = (name, label) =>
    el("span", {}, svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, svg("rect", { class: `task ${name}`, x: 8, y: 0, width: 10, height: 10, rx: 2 })), label);
  return el("p", { class: "legend" }, line("ok", "tunnel up"), line("warn", "tunnel silent"), line("bad", "no handshake"), square("ok", "running task"), square("warn", "task that starts"), square("bad", "failed task"));
}

export function map(host) {
  const lines = svg("g");
  const labels = svg("g");
  const boxes = svg("g");
  const drawing = svg("svg", { role: "img" }, lines, labels, boxes);
  const key = legend();
  return (nodes, tasks, rates) => {
    const here = nodes.find((node) => node.here);
    if (!here || nodes.length < 2 || nodes.length > MOST) return host.replaceChildren();
    if (!host.firstChild) host.append(drawing, key);
    const others = nodes.filter((node) => !node.here);
    const height = others.length <= 2 ? ROW : HEIGHT;
    const at = places(here, others, height);
    const [cx, cy] = at.get(here.id);
    drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    drawing.setAttribute("aria-label", `${others.length} tunnels: ${others.map((node) => `${node.hostname} ${tunnel(node)[1]}`).join(", ")}`);
    follow(lines, others, (node) => node.id, () => svg("line"), (line, node) => {
      line.setAttribute("x1", cx);
      line.setAttribute("y1", cy);
      const [x, y] = at.get(node.id);
      line.setAttribute("x2", x);
      line.setAttribute("y2", y);
      look(line, `tunnel ${tunnel(node)[0]}`);
    });
    follow(labels, others, (node) => node.id, () => svg("g", {}, svg("rect", { class: "label", width: 112, height: 18, rx: 9 }), svg("text", { class: "small" })), (label, node) => {
      const [x, y] = at.get(node.id);
      const [mx, my] = [cx + (x - cx) * 0.5, cy + (y - cy) * 0.55];
      const [box, word] = label.children;
      box.setAttribute("x", mx - 56);
      box.setAttribute("y", my - 9);
      word.setAttribute("x", mx);
      word.setAttribute("y", my + 4);
      const now = rates.get(node.id);
      text(word, now === undefined || tunnel(node)[0] === "bad" ? tunnel(node)[1] : `${bytes(now)}/s`);
    });
    follow(boxes, nodes, (node) => node.id, () => svg("g", {}, svg("title"), svg("rect", { class: "box", width: 190, height: 74, rx: 10 }), svg("text", { y: 22 }), svg("text", { class: "small", y: 38 }), svg("g")), (group, node) => {
      const [x, y] = at.get(node.id);
      const [title, box, name, role, squares] = group.children;
      group.setAttribute("transform", `translate(${x} ${y - 37})`);
      box.setAttribute("x", -95);
      look(group, `${node.here ? "here" : ""} ${node.state === "down" ? "down" : ""}`);
      const own = tasks.filter((task) => task.node === node.id);
      text(title, `${node.hostname}: ${node.state || "in the swarm"}, ${own.length} tasks, ${tunnel(node)[1]}`);
      text(name, node.hostname.length > 24 ? `${node.hostname.slice(0, 23)}…` : node.hostname);
      text(role, [node.leader ? "leader" : node.manager ? "manager" : "worker", node.state === "ready" ? "" : node.state, node.availability === "active" ? "" : node.availability].filter(Boolean).join(", "));
      const shown = own.slice(0, own.length > MOST_TASKS ? MOST_TASKS - 2 : MOST_TASKS);
      const marks = own.length > shown.length ? [...shown, { id: "more", left: own.length - shown.length }] : shown;
      const width = Math.min(marks.length, 12) * 14;
      follow(squares, marks, (task) => task.id, (task) => (task.left ? svg("text", { class: "small" }) : svg("rect", { width: 10, height: 10, rx: 2 })), (mark, task) => {
        const number = marks.indexOf(task);
        const [left, top] = [(number % 12) * 14 - width / 2 + 2, 46 + Math.floor(number / 12) * 13];
        mark.setAttribute("x", task.left ? left + 12 : left);
        mark.setAttribute("y", task.left ? top + 9 : top);
        if (task.left) text(mark, `+${task.left}`);
        else look(mark, `task ${taskLook(task.state)}`);
      });
    });
  };
}
