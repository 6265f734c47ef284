// Asks for /api/overview every two seconds and shows it.

import { badge, bytes, count, el, follow, look, millis, named, percent, rate, spark, table, text, time } from "./parts.js";
import { map, taskLook, tunnel } from "./map.js";

const EVERY = 2000;
/** Readings that the courses of numbers have. */
const READINGS = 60;
const byId = (id) => document.getElementById(id);

const courses = new Map();
const counters = new Map();
const open = new Map();
let last = null;
let failure = "";
let paused = false;

/** The token: once after the # of the address, then of this window and port alone, and never in a cookie, which every port would get. */
const given = /^#token=([0-9a-f]+)$/.exec(location.hash);
if (given) {
  sessionStorage.setItem("token", given[1]);
  history.replaceState(null, "", location.pathname);
}

/** Asks for data, with the token. */
const fetched = (target, options) =>
  fetch(target, { cache: "no-store", headers: { "skep-dashboard-token": sessionStorage.getItem("token") ?? "" }, ...options });

/** Adds a reading to a course. */
function course(key, value) {
  const values = courses.get(key) ?? [];
  if (last?.fresh) {
    values.push(value);
    if (values.length > READINGS) values.shift();
  }
  courses.set(key, values);
  return values;
}

/** How much a counter rises per second, between the last two readings; nothing if it is not known. */
function rises(key, value) {
  const before = counters.get(key);
  if (last?.fresh) {
    const seconds = before ? (last.time - before.time) / 1000 : 0;
    const now = before && value >= before.value && seconds > 0 ? (value - before.value) / seconds : undefined;
    counters.set(key, { value, time: last.time, now });
    return now;
  }
  return before?.now;
}

/** Requests per second, errors and the slowest quantiles of some routes. */
function traffic(routes) {
  const all = { perSecond: 0, requests: 0, errors: 0, p50: 0, p99: 0 };
  for (const { rates } of routes) {
    if (!rates.window_ms) continue;
    all.perSecond += (rates.requests * 1000) / rates.window_ms;
    all.requests += rates.requests;
    all.errors += rates.errors;
    all.p50 = Math.max(all.p50, rates.p50_us);
    all.p99 = Math.max(all.p99, rates.p99_us);
  }
  return all;
}

function showErrors(cell, requests, errors) {
  look(cell, `number ${errors > 0 ? "bad" : ""}`);
  text(cell, requests > 0 ? percent(errors, requests) : "–");
}

const short = (id) => id.slice(0, 12);
const clock = (at) => new Date(at).toLocaleTimeString();
const moment = (at) => new Date(at).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });

const drawMap = map(byId("map"));

const drawNodes = table(byId("node-table"), {
  caption: "Nodes of the swarm and the tunnels to them",
  empty: "This node is in no swarm.",
  key: (node) => node.id,
  columns: [
    { label: "Node", kind: "head", set: (cell, node) => named(cell, node.hostname, `${node.leader ? "leader" : node.manager ? "manager" : "worker"}${node.here ? ", this node" : ""}`) },
    { label: "State", set: (cell, node) => badge(cell, [node.state || "not known here", node.availability === "active" ? "" : node.availability].filter(Boolean).join(", "), { ready: node.availability === "active" ? "ok" : "warn", down: "bad" }[node.state] ?? "") },
    { label: "Tunnel", set: (cell, node) => badge(cell, tunnel(node)[1], tunnel(node)[0]) },
    { label: "Endpoint", kind: "wide soft", set: (cell, node) => text(cell, node.endpoint || (node.here ? "" : "–")) },
    { label: "Handshake", kind: "number", set: (cell, node) => text(cell, node.handshake_seconds === null ? (node.here ? "" : "–") : `${time(node.handshake_seconds)} ago`) },
    { label: "Received", kind: "number wide", set: (cell, node) => text(cell, node.here ? "" : bytes(node.rx_bytes)) },
    { label: "Sent", kind: "number wide", set: (cell, node) => text(cell, node.here ? "" : bytes(node.tx_bytes)) },
    { label: "Tasks", kind: "number", set: (cell, node) => text(cell, last.data.cluster_error ? "–" : last.data.tasks.filter((task) => task.node === node.id && task.state === "running").length) },
  ],
});

const drawServices = table(byId("service-table"), {
  caption: "Services with their tasks and traffic",
  empty: "There is no service to show.",
  key: (service) => service.id,
  more: (service) => open.get(service.id)?.node,
  columns: [
    {
      label: "Service", kind: "head", set: (cell, service) => {
        if (!cell.firstChild) {
          const button = el("button", { class: "open", type: "button" });
          button.addEventListener("click", () => toggle(service.id));
          cell.append(el("div", {}, button, el("span", { class: "sub" })));
        }
        const [button, below] = cell.firstChild.children;
        text(button, service.name);
        button.setAttribute("aria-expanded", String(open.has(service.id)));
        text(below, [service.image, service.mode === "replicated" ? "" : service.mode].filter(Boolean).join(" · "));
      },
    },
    {
      label: "Tasks", set: (cell, service) => {
        const enough = service.running >= service.desired;
        badge(cell, `${service.running} of ${service.desired}`, enough ? (service.desired ? "ok" : "") : service.running ? "warn" : "bad");
      },
    },
    { label: "Update", kind: "wide", set: (cell, service) => (service.update ? badge(cell, service.update.replaceAll("_", " "), { completed: "", updating: "warn", rollback_started: "warn", paused: "bad", rollback_paused: "bad" }[service.update] ?? "") : cell.replaceChildren()) },
    { label: "Ports", kind: "wide soft", set: (cell, service) => text(cell, service.ports.join(", ")) },
    { label: "Connections", kind: "number", set: (cell, service) => { const now = rises(`connections ${service.id}`, service.connections); text(cell, service.connections === 0 || now === undefined ? "–" : rate(now)); } },
    { label: "Requests", kind: "number", set: (cell, service) => text(cell, service.routes.length ? rate(service.traffic.perSecond) : "–") },
    { label: "Errors", kind: "number", set: (cell, service) => showErrors(cell, service.traffic.requests, service.traffic.errors) },
    { label: "Slowest 1 %", kind: "number", set: (cell, service) => text(cell, service.traffic.requests ? `≥ ${millis(service.traffic.p99)}` : "–") },
    { label: "Trend", kind: "trend wide", set: (cell, service) => (service.routes.length ? spark(cell, course(`service ${service.id}`, service.traffic.perSecond), "requests per second") : cell.replaceChildren()) },
  ],
});

const drawRoutes = table(byId("route-table"), {
  caption: "HTTP routes of this node",
  empty: "No service has an HTTP route: the label skep.http=HOST gives it one.",
  key: (route) => JSON.stringify([route.host, route.prefix, route.service]),
  columns: [
    { label: "Route", kind: "head", set: (cell, route) => named(cell, route.host + (route.prefix === "/" ? "" : route.prefix), `to ${route.service}`) },
    { label: "Ready", set: (cell, route) => badge(cell, `${route.ready} of ${route.tasks}`, route.ready === 0 ? "bad" : route.ready < route.tasks ? "warn" : "ok") },
    { label: "Certificate", set: (cell, route) => certificate(cell, route) },
    { label: "Requests", kind: "number", set: (cell, route) => text(cell, route.rates.window_ms ? rate((route.rates.requests * 1000) / route.rates.window_ms) : "–") },
    { label: "Errors", kind: "number", set: (cell, route) => showErrors(cell, route.rates.requests, route.rates.errors) },
    { label: "Median", kind: "number", set: (cell, route) => text(cell, route.rates.requests ? millis(route.rates.p50_us) : "–") },
    { label: "99 %", kind: "number", set: (cell, route) => text(cell, route.rates.requests ? millis(route.rates.p99_us) : "–") },
    { label: "In all", kind: "number wide", set: (cell, route) => text(cell, count(route.requests)) },
  ],
});

function certificate(cell, route) {
  const left = route.certificate_seconds_left;
  if (left === null) return badge(cell, route.certificate, route.certificate.startsWith("none") ? "bad" : route.certificate === "self-signed" ? "" : "warn");
  badge(cell, left === 0 ? `${route.certificate}, expired` : `${route.certificate}, ${time(left)} left`, left < 3 * 86400 ? "bad" : left < 21 * 86400 ? "warn" : "ok");
}

const drawPorts = table(byId("port-table"), {
  caption: "Published ports of this node",
  empty: "No service publishes a port.",
  key: (port) => `${port.port}/${port.protocol}`,
  columns: [
    { label: "Port", kind: "head name", set: (cell, port) => text(cell, `${port.port}/${port.protocol}`) },
    { label: "Service", set: (cell, port) => text(cell, port.service) },
    { label: "State", set: (cell, port) => (typeof port.state === "string" ? badge(cell, port.state.toLowerCase(), port.state === "Listening" ? "ok" : "warn") : badge(cell, Object.entries(port.state).flat().join(": "), "bad")) },
    { label: "Tasks", kind: "number", set: (cell, port) => { look(cell, `number ${port.backends ? "" : "bad"}`); text(cell, port.backends); } },
    { label: "Connections", kind: "number", set: (cell, port) => text(cell, count(port.connections)) },
    { label: "Not accepted", kind: "number", set: (cell, port) => text(cell, count(port.errors)) },
    { label: "Refused", kind: "number", set: (cell, port) => text(cell, count(port.refused + port.over_share)) },
  ],
});

const drawDrops = table(byId("drop-table"), {
  caption: "Packets that were dropped or refused, by reason",
  empty: "Nothing was dropped or refused since the node's programs were loaded.",
  key: (drop) => drop.reason,
  columns: [
    { label: "Reason", kind: "head", set: (cell, drop) => named(cell, drop.reason.replaceAll("_", " "), drop.meaning) },
    { label: "What happened", set: (cell, drop) => text(cell, drop.left ? "left to the host" : "dropped") },
    { label: "Services", set: (cell, drop) => text(cell, Object.entries(drop.services).map(([name, number]) => `${name || "none"} ${count(number)}`).join(", ")) },
    { label: "Lately", kind: "number", set: (cell, drop) => { look(cell, `number ${drop.rising && !drop.left ? "bad" : ""}`); text(cell, drop.rising ? `+${count(drop.rising)}` : "–"); } },
    { label: "In all", kind: "number", set: (cell, drop) => text(cell, count(drop.count)) },
  ],
});

function tiles(data, services) {
  const all = traffic(data.http.routes);
  const known = data.cluster_error === "";
  const ready = data.nodes.filter((node) => node.state === "ready").length;
  const running = services.reduce((sum, service) => sum + service.running, 0);
  const desired = services.reduce((sum, service) => sum + service.desired, 0);
  const unready = services.filter((service) => service.running < service.desired).length;
  const dropped = data.drops.filter((drop) => !drop.left);
  const rising = dropped.reduce((sum, drop) => sum + drop.rising, 0);
  const silent = data.nodes.filter((node) => ["bad", "warn"].includes(tunnel(node)[0])).length;
  const list = [
    { name: "Nodes", value: known ? `${ready} of ${data.nodes.length}` : data.nodes.length, note: silent ? `${silent} without a live tunnel` : known ? "ready, all tunnels up" : "in the swarm", state: silent || (known && ready < data.nodes.length) ? "warn" : "" },
    { name: "Tasks", value: known ? `${running} of ${desired}` : "–", note: known ? (unready ? `${unready} services have too few` : `of ${services.length} services`) : "shown on a manager", state: known && unready ? "warn" : "" },
    { name: "Requests", value: rate(all.perSecond), note: `${count(data.http.connections)} open connections`, state: "", values: course("all", all.perSecond) },
    { name: "Errors", value: all.requests ? percent(all.errors, all.requests) : "–", note: all.requests ? `${all.errors} of ${count(all.requests)} lately` : "no request lately", state: all.errors ? "bad" : "" },
    { name: "Drops", value: count(dropped.reduce((sum, drop) => sum + drop.count, 0)), note: rising ? `${count(rising)} lately` : "none lately", state: rising ? "warn" : "" },
  ];
  follow(byId("tiles"), list, (tile) => tile.name, (tile) => el("div", { class: "tile" }, el("dt", {}, tile.name), el("dd", { class: "value" }), el("dd", { class: "note" }), el("dd")), (node, tile) => {
    look(node.children[1], `value ${tile.state}`);
    text(node.children[1], tile.value);
    text(node.children[2], tile.note);
    if (tile.values) spark(node.children[3], tile.values, "requests per second");
  });
}

function toggle(id) {
  if (open.has(id)) {
    open.delete(id);
  } else {
    const entry = { node: el("div"), tasks: el("ul", { class: "tasks" }), story: el("ol", { class: "story", tabindex: "0", "aria-label": "History, newest first" }), said: el("p", { class: "soft" }, "…"), at: 0 };
    entry.node.append(el("h3", {}, "Tasks"), entry.tasks, el("h3", {}, "History"), entry.said, entry.story);
    open.set(id, entry);
    story(id);
  }
  show();
}

/** Reads a service's history again. */
async function story(id) {
  const entry = open.get(id);
  if (!entry || Date.now() - entry.at < 5 * EVERY) return;
  entry.at = Date.now();
  try {
    const answer = await fetched(`/api/history/${encodeURIComponent(id)}`);
    const events = await answer.json();
    if (!answer.ok) throw new Error(events.message);
    text(entry.said, "");
    const numbered = events.map((event, number) => ({ ...event, number })).reverse().slice(0, 200);
    follow(entry.story, numbered, (event) => `${event.number} ${event.At} ${event.Event}`, (event) =>
      el("li", {}, el("time", { datetime: event.At }, moment(event.At)), el("span", { class: "name" }, event.Event), el("span", { class: "soft" }, [event.Name, event.Node && `on ${event.Node}`].filter(Boolean).join(" ")), el("span", { class: "why" }, event.Why)), () => {});
  } catch (error) {
    text(entry.said, `no history: ${error.message}`);
  }
}

function details(data) {
  const hosts = new Map(data.nodes.map((node) => [node.id, node.hostname]));
  for (const [id, entry] of open) {
    const own = data.tasks.filter((task) => task.service === id);
    follow(entry.tasks, own.slice(0, 100), (task) => task.id, () => el("li"), (item, task) => {
      const where = task.node ? ` on ${hosts.get(task.node) ?? short(task.node)}` : "";
      badge(item, `${task.slot || short(task.id)} ${task.state}${where}${task.error ? `: ${task.error}` : ""}`, taskLook(task.state));
    });
  }
}

function notices(data) {
  const all = [];
  if (failure) all.push({ state: "bad", what: failure });
  if (data) {
    if (data.this.error) all.push({ state: "bad", what: data.this.error });
    if (data.cluster_error) all.push({ state: "", what: `Services and tasks are not shown: ${data.cluster_error}` });
    if (data.http.error) all.push({ state: "bad", what: `HTTP routes: ${data.http.error}` });
    for (const what of data.this.warnings) all.push({ state: "", what });
    for (const what of data.http.problems) all.push({ state: "", what });
    if (data.tasks_left_out) all.push({ state: "", what: `${data.tasks_left_out} tasks more are not shown` });
  }
  follow(byId("notices"), all, (notice) => notice.what, (notice) => el("p", { class: `notice ${notice.state}` }, notice.what), () => {});
}

function age() {
  const node = byId("age");
  const old = last ? (Date.now() - last.time) / 1000 : 0;
  look(node, `badge ${failure ? "bad" : paused || old > 10 ? "warn" : last ? "ok" : ""}`);
  text(node, !last ? (failure ? "no answer" : "no data yet") : failure ? `of ${clock(last.time)}` : paused ? `paused at ${clock(last.time)}` : "live");
}

function show() {
  const data = last?.data;
  notices(data);
  age();
  if (!data) return;
  const { this: me, http } = data;
  const services = data.services.map((service) => {
    const routes = http.routes.filter((route) => route.service === service.name);
    return { ...service, routes, traffic: traffic(routes) };
  });
  const tunnels = new Map(data.nodes.filter((node) => !node.here).map((node) => [node.id, rises(`tunnel ${node.id}`, node.rx_bytes + node.tx_bytes)]));
  text(byId("identity"), [me.hostname, me.role, me.role && `leader ${me.leader || "not known"}`, me.state === "active" ? "" : me.state].filter(Boolean).join(" · "));
  document.title = `${me.hostname || "skep"} – skep`;
  tiles(data, services);
  drawMap(data.nodes, data.tasks, tunnels);
  drawNodes(data.nodes);
  const wanted = byId("filter").value.trim().toLowerCase();
  details(data);
  drawServices(services.filter((service) => service.name.toLowerCase().includes(wanted)));
  text(byId("listeners"), http.listeners.map((one) => `${one.address}${one.tls ? " with TLS" : ""}${one.error ? `: ${one.error}` : ""}`).join(", "));
  byId("listeners").hidden = http.listeners.length === 0;
  drawRoutes(http.routes);
  drawPorts(data.ports);
  drawDrops(data.drops);
  text(byId("versions"), [`skep ${me.version}`, me.tunnel && `tunnel: ${me.tunnel}`, me.datapath && `published ports: ${me.datapath}`, me.certificate_seconds_left !== null && `node certificate: ${time(me.certificate_seconds_left)} left`].filter(Boolean).join(" · "));
}

async function ask() {
  if (paused || document.hidden) return;
  try {
    const answer = await fetched("/api/overview", { signal: AbortSignal.timeout(5 * EVERY) });
    if (answer.status === 401) throw new Error("this window has no token of a page that runs: open the address that `skep dashboard` prints, in whole");
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.message);
    last = { data, time: Date.now(), fresh: true };
    failure = "";
  } catch (error) {
    failure = `No answer: ${error.message}. ${last ? `This is of ${clock(last.time)}.` : ""}`;
  }
  show();
  if (last) last.fresh = false;
  for (const id of open.keys()) story(id);
}

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.currentTarget.setAttribute("aria-pressed", String(paused));
  text(event.currentTarget, paused ? "Go on" : "Pause");
  if (paused) age();
  else ask();
});
byId("filter").addEventListener("input", show);
document.addEventListener("visibilitychange", ask);

async function run() {
  await ask();
  setTimeout(run, EVERY);
}
run();
