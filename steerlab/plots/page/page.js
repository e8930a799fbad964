// The page of steerlab: one module for a file, a notebook widget and a local server. It draws what the contract holds
// (contract.py) and fetches nothing; texts that are missing are asked for through `ask`, where there is one.

const SVG = "http://www.w3.org/2000/svg";
const MARKS = [
  "M0-5A5 5 0 1 0 0 5A5 5 0 1 0 0-5Z", // circle, triangle, square, diamond, plus, cross
  "M0-5.6L5.2 4H-5.2Z", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-6L6 0L0 6L-6 0Z",
  "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z", "M-5-3L-3-5L0-2L3-5L5-3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
];
const HATCHED = 0.5; // the share of broken, or of unsafe and fluent texts, from which on a cell is hatched
let pages = 0; // so that ids of several pages in one notebook differ

// ---- small helpers ----

/** An element with attributes, listeners (`onclick`) and children; names with a capital or in SVG_NAMES are SVG. */
const SVG_NAMES = new Set(["svg", "g", "rect", "path", "line", "text", "defs", "pattern", "title", "tspan", "circle"]);
const INPUTS = new Set(["input", "select", "textarea", "button"]);
function make(name, attributes = {}, ...children) {
  const element = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  // JupyterLab takes the keys of what has the focus for its cells (arrows, Enter), unless that element itself says not to
  if (INPUTS.has(name) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const nearest = (list, value) =>
  list.reduce((best, one, i) => (Math.abs(one - value) < Math.abs(list[best] - value) ? i : best), 0);

function number(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(digits);
  return text.replace("-", "−");
}

const strength = (alpha) => String(Number(alpha.toPrecision(6))).replace("-", "−");
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)}%`);

/** The words of `text` and the spaces between them, each with whether it is a word that `before` does not have in the
 *  longest common subsequence of words. */
export function changedWords(before, text) {
  const a = before.split(/\s+/).filter(Boolean), pieces = text.split(/(\s+)/), b = pieces.filter((piece) => piece.trim());
  const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  const changed = [];
  for (let i = 0, j = 0; j < b.length; ) {
    if (i < a.length && a[i] === b[j]) changed.push(false), i++, j++;
    else if (i < a.length && table[i + 1][j] >= table[i][j + 1]) i++;
    else changed.push(true), j++;
  }
  return pieces.map((piece) => [piece, piece.trim() ? changed.shift() : false]);
}

/** The points that no other one beats: at least as much effect with less side effect. */
export function frontier(points) {
  const found = [];
  for (const point of [...points].sort((p, q) => p.x - q.x || q.y - p.y))
    if (!found.length || point.y > found[found.length - 1].y) found.push(point);
  return found;
}

/** Ticks at round numbers from `low` to `high`. */
function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

/** Arrow keys move the focus among `items`, of which one is in the tab order; Enter and Space choose. */
function roving(items, columns, choose) {
  items.forEach((item, i) => {
    item.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
      const ends = { Home: 0, End: items.length - 1 }[event.key];
      const to = ends ?? (step === undefined ? null : i + step);
      if (event.key === "Enter" || event.key === " ") event.preventDefault(), choose(i);
      else if (to !== null && items[to]) {
        event.preventDefault();
        items.forEach((one, j) => one.setAttribute("tabindex", j === to ? 0 : -1));
        items[to].focus();
      }
    });
    item.addEventListener("click", () => choose(i));
  });
}

// ---- the page ----

/** Draw a page into `root`.
 *  @param ask  (request, signal) => async iterable of {text}, {done: text of the contract} or {error}; null: no model
 *  @param hash keep strength, layer and prompt in the address
 *  @returns {get, set, destroy} */
export function mount(root, data, { ask = null, hash = false } = {}) {
  const page = new View(root, data, ask, hash);
  return { get: () => ({ ...page.state }), set: (change) => page.set(change), destroy: () => page.destroy() };
}

class View {
  constructor(root, data, ask, hash) {
    Object.assign(this, { root, data, ask, hash, id: `steerlab-${++pages}`, stop: new AbortController() });
    this.marks = { broken: "broken", unsafe: `${data.unsafe.label} but fluent` };
    this.texts = new Map(data.texts.map((text) => [this.key(text), text]));
    this.cells = new Map(data.cells.map((cell) => [`${cell.method}|${cell.layer}|${cell.alpha}`, cell]));
    this.base = new Map(data.cells.filter((c) => data.alphas[c.alpha] === 0).map((c) => [c.method, c]));
    this.state = { alpha: 0, layer: 0, prompt: 0 };
    this.state.alpha = this.start();
    this.readHash();
    this.build();
    if (hash) window.addEventListener("hashchange", () => this.readHash() && this.update(), { signal: this.stop.signal });
    this.update();
  }

  destroy() {
    this.stop.abort();
    this.running?.abort();
    this.root.replaceChildren();
  }

  key({ method, layer, alpha, prompt }) {
    return method === null || this.data.alphas[alpha] === 0 ? `none|${prompt}` : `${method}|${layer}|${alpha}|${prompt}`;
  }

  /** The strength that the page opens with: the best effect among cells that are not hatched. */
  start() {
    const usable = this.data.cells.filter((cell) => !this.fault(cell) && cell.effect !== null);
    const best = usable.sort((a, b) => b.effect - a.effect || a.side_effect - b.side_effect)[0];
    if (best) this.state.layer = best.layer;
    return best ? best.alpha : nearest(this.data.alphas, 1);
  }

  fault(cell) {
    return cell.broken >= HATCHED ? "broken" : cell.unsafe >= HATCHED ? "unsafe" : null;
  }

  readHash() {
    if (!this.hash || location.hash === this.written) return false;
    const given = new URLSearchParams(location.hash.slice(1)), { alphas, layers, prompts } = this.data;
    const alpha = parseFloat(given.get("alpha")), layer = layers.findIndex((one) => String(one) === given.get("layer"));
    let prompt = prompts.findIndex((one) => one.id === given.get("prompt"));
    if (prompt < 0) prompt = prompts.findIndex((_, i) => String(i) === given.get("prompt"));
    if (Number.isFinite(alpha)) this.state.alpha = nearest(alphas, alpha);
    if (layer >= 0) this.state.layer = layer;
    if (prompt >= 0) this.state.prompt = prompt;
    return true;
  }

  writeHash() {
    if (!this.hash) return;
    const { alphas, layers, prompts } = this.data, { alpha, layer, prompt } = this.state;
    const parts = { alpha: alphas[alpha], layer: layers[layer], prompt: prompts[prompt]?.id };
    this.written = "#" + Object.entries(parts).filter(([, v]) => v !== undefined).map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join("&");
    if (location.hash !== this.written) history.replaceState(null, "", this.written);
  }

  set(change) {
    Object.assign(this.state, change);
    this.update();
  }

  // ---- built once ----

  build() {
    const { data } = this;
    this.root.classList.add("steerlab-page");
    this.cards = make("section", { class: "cards", "aria-label": "Texts" });
    this.question = make("div", { class: "question" });
    this.status = make("p", { class: "status", role: "status" });
    this.gauge = make("section", { class: "panel gauge", "aria-labelledby": `${this.id}-ratio` });
    this.maps = make("div", { class: "maps" });
    this.plot = make("div", { class: "plot" });
    this.root.replaceChildren(
      make("header", {},
        make("h1", {}, data.title),
        data.methods.length ? make("p", { class: "lead" }, "Move the strength and read what the model writes. ", make("mark", {}, "Marked words"),
          " differ from the unsteered text.") : make("p", { class: "lead" }, "No vector was given: this is what the model writes by itself."),
        make("p", { class: "note" }, [data.model, data.note].filter(Boolean).join(" · "))),
      this.controls(), this.question, this.cards,
      data.methods.length ? make("p", { class: "hint" }, "Bars over the tokens: the height is the norm ratio, the length of the added vector beside that of the "
        + "state, ‖αv‖/‖h‖; blue states point along the vector, hollow red ones against it, pale ones neither way. Point at a token, or walk with "
        + "the arrow keys, for its numbers. KL says how much the vector changed which token is likely there: 0 nats is not at all.") : "",
      this.status, data.methods.length ? this.gauge : "",
      data.cells.length ? make("section", { class: "panel sweep", "aria-labelledby": `${this.id}-map` },
        make("h2", { id: `${this.id}-map` }, "The sweep"),
        make("p", { class: "hint" }, `Each square is a layer and a strength. Its number is the ${data.effect.label}, the mean over the `
          + "prompts of the sweep; blue is more than without steering, red is less. Choose a square to read its texts."),
        this.legend(), make("div", { class: "charts" }, this.maps, this.plot)) : "");
    this.drawCharts();
    new ResizeObserver(() => this.width !== this.root.clientWidth && (this.drawCharts(), this.update())).observe(this.root);
  }

  /** Charts are drawn at the width that there is, so that their letters keep their size. */
  drawCharts() {
    this.width = this.root.clientWidth;
    this.room = Math.max(260, this.width - (this.width > 640 ? 82 : 62));
    if (this.data.cells.length) this.drawMaps(), this.drawFrontier();
  }

  controls() {
    const { data, id } = this, groups = new Map();
    data.prompts.forEach((prompt, i) => groups.set(prompt.group, [...(groups.get(prompt.group) ?? []), [i, prompt]]));
    const option = ([i, prompt]) => make("option", { value: i }, prompt.text.replace(/\s+/g, " ").slice(0, 90));
    this.picker = make("select", { id: `${id}-prompt`, onchange: (e) => this.set({ prompt: Number(e.target.value) }) },
      [...groups].flatMap(([name, list]) => (name ? [make("optgroup", { label: name }, list.map(option))] : list.map(option))));
    this.slider = make("input", { id: `${id}-alpha`, type: "range", min: 0, max: data.alphas.length - 1, step: 1,
      oninput: (e) => this.set({ alpha: Number(e.target.value) }) });
    this.output = make("output", { for: `${id}-alpha` });
    this.layers = make("select", { id: `${id}-layer`, onchange: (e) => this.set({ layer: Number(e.target.value) }) },
      data.layers.map((layer, i) => make("option", { value: i }, String(layer))));
    const field = (name, label, ...inputs) =>
      make("div", { class: `field ${name}` }, make("label", { for: `${id}-${name}` }, label), ...inputs);
    return make("form", { class: "controls", "aria-label": "What to show", onsubmit: (e) => this.own(e) },
      field("prompt", "Prompt", this.picker),
      data.methods.length ? [field("alpha", make("span", {}, "Strength α ", this.output), this.slider), field("layer", "Layer", this.layers)] : null,
      this.ask ? field("own", "Your own prompt", this.entry = make("textarea", { id: `${id}-own`, rows: 1 }),
        make("button", { type: "submit" }, "Answer")) : null);
  }

  own(event) {
    event.preventDefault();
    const text = this.entry?.value.trim();
    if (!text) return;
    let found = this.data.prompts.findIndex((prompt) => prompt.own && prompt.text === text);
    if (found < 0) {
      found = this.data.prompts.push({ id: `own ${this.data.prompts.length}`, text, group: "", images: [], own: true }) - 1;
      this.picker.append(make("option", { value: found }, text.slice(0, 90)));
    }
    this.set({ prompt: found });
  }

  hatches(prefix) {
    const pattern = (name, ...lines) => make("pattern",
      { id: `${this.id}-${prefix}-${name}`, width: 7, height: 7, patternUnits: "userSpaceOnUse" },
      lines.map((d) => make("path", { d, class: "hatch" })));
    return make("defs", {}, pattern("broken", "M-1 8L8-1"), pattern("unsafe", "M0 3.5H7M3.5 0V7"));
  }

  legend() {
    const swatch = (name) => make("svg", { class: "swatch", viewBox: "0 0 18 14", "aria-hidden": "true" },
      this.hatches(`legend-${name}`), make("rect", { width: 18, height: 14, class: "frame" }),
      make("rect", { width: 18, height: 14, fill: `url(#${this.id}-legend-${name}-${name})` }));
    const unsafe = this.data.cells.some((cell) => cell.unsafe !== null);
    return make("ul", { class: "legend" },
      make("li", {}, swatch("broken"), "broken: half or more of the texts do not read well"),
      unsafe ? make("li", {}, swatch("unsafe"), `${this.marks.unsafe}: half or more of the texts on which it was measured`) : null,
      this.data.methods.map((method, m) => make("li", {}, this.mark(m), method.label)));
  }

  mark(method, size = 14) {
    return make("svg", { class: "mark", viewBox: "-7 -7 14 14", width: size, height: size, "aria-hidden": "true" },
      make("path", { d: MARKS[method % MARKS.length], fill: this.data.methods[method].color }));
  }

  // ---- the map and the frontier ----

  change(cell) {
    const base = this.base.get(cell.method) ?? this.base.values().next().value; // unsteered, all methods are one
    return cell.effect === null ? null : cell.effect - (base?.effect ?? 0);
  }

  describe(cell) {
    const { data } = this, mark = this.marks[this.fault(cell)], fault = mark ? `, ${mark}` : "";
    return `${data.methods[cell.method].label}, layer ${data.layers[cell.layer]}, strength ${strength(data.alphas[cell.alpha])}: `
      + `${data.effect.label} ${number(cell.effect)}, ${data.side_effect.label} ${number(cell.side_effect)}${fault}`;
  }

  drawMaps() {
    const { data } = this, most = Math.max(...data.cells.map((c) => Math.abs(this.change(c) ?? 0)), 1e-9);
    const [left, top, bottom] = [34, 6, 40], height = Math.max(20, Math.min(44, 360 / data.layers.length));
    const width = Math.max(17, Math.min(46, (Math.min(this.room, 420) - left - 4) / data.alphas.length)), rows = [...data.layers.keys()].reverse();
    const size = [left + width * data.alphas.length + 4, top + height * rows.length + bottom];
    this.squares = new Map();
    this.maps.replaceChildren(...data.methods.map((method, m) => {
      const squares = [];
      rows.forEach((l, row) => data.alphas.forEach((_, a) => {
        const cell = this.cells.get(`${m}|${l}|${a}`);
        if (!cell) return;
        const square = this.square(cell, left + a * width, top + row * height, width, height, most, `map${m}`);
        this.squares.set(cell, square);
        squares.push([square, cell]);
      }));
      roving(squares.map(([s]) => s), data.alphas.length, (i) => this.choose(squares[i][1]));
      const everyLayer = Math.ceil(rows.length / 16), everyAlpha = Math.ceil(26 / width);
      const labels = [
        ...rows.filter((_, i) => i % everyLayer === 0).map((l, i) =>
          make("text", { x: left - 6, y: top + (i * everyLayer + 0.5) * height + 4, class: "tick end" }, String(data.layers[l]).slice(0, 6))),
        ...data.alphas.filter((_, i) => i % everyAlpha === 0).map((alpha, i) =>
          make("text", { x: left + (i * everyAlpha + 0.5) * width, y: size[1] - bottom + 15, class: "tick middle" }, strength(alpha))),
        make("text", { x: left + width * data.alphas.length / 2, y: size[1] - 6, class: "axis middle" }, "strength α"),
        make("text", { x: 9, y: top + height * rows.length / 2, class: "axis middle", transform: `rotate(-90 9 ${top + height * rows.length / 2})` }, "layer"),
      ];
      return make("figure", {}, make("figcaption", {}, this.mark(m), method.label),
        make("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, style: `max-width:${size[0]}px`, role: "group", "aria-label": `Map of ${method.label}` },
          this.hatches(`map${m}`), make("g", { "aria-hidden": "true" }, labels), squares.map(([s]) => s)));
    }));
  }

  square(cell, x, y, width, height, most, prefix) {
    const change = this.change(cell), fault = this.fault(cell), shade = change === null ? 0 : Math.abs(change) / most;
    return make("g", { class: "cell", role: "button", tabindex: -1, "aria-label": this.describe(cell), transform: `translate(${x} ${y})` },
      make("title", {}, this.describe(cell)),
      make("rect", { width, height, class: "surface" }),
      make("rect", { width, height, class: change < 0 ? "less" : "more", style: `--shade:${shade.toFixed(3)}` }),
      fault ? make("rect", { width, height, fill: `url(#${this.id}-${prefix}-${fault})` }) : null,
      width >= 30 ? make("text", { x: width / 2, y: height / 2 + 4, class: "value" }, number(cell.effect).replace(/^0\./, ".")) : null,
      make("rect", { x: 1, y: 1, width: width - 2, height: height - 2, class: "frame" }));
  }

  drawFrontier() {
    const { data } = this, points = data.cells.filter((c) => c.effect !== null && c.side_effect !== null)
      .map((cell) => ({ cell, x: cell.side_effect, y: cell.effect }));
    const [width, height, left, bottom, top, right] = [Math.min(640, this.room > 900 ? this.room - 500 : this.room), 340, 52, 46, 12, 14];
    const ends = (values) => {
      const low = Math.min(...values, 0), high = Math.max(...values, 0);
      return [low, high + (0.05 * (high - low) || 1)];
    };
    const [x0, x1] = ends(points.map((p) => p.x)), [y0, y1] = ends(points.map((p) => p.y));
    const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
    const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - bottom - top);
    const good = points.filter((p) => !this.fault(p.cell));
    const line = frontier(good).map((p) => `${px(p.x).toFixed(1)} ${py(p.y).toFixed(1)}`).join("L");
    points.sort((p, q) => p.x - q.x || p.y - q.y);
    this.points = new Map();
    const marks = points.map(({ cell, x, y }) => {
      const mark = make("g", { class: `point ${this.fault(cell) ?? ""}`, role: "button", tabindex: -1, "aria-label": this.describe(cell),
        transform: `translate(${px(x)} ${py(y)})`, style: `color:${data.methods[cell.method].color}` },
        make("title", {}, this.describe(cell)), make("circle", { r: 9, class: "ring" }), make("path", { d: MARKS[cell.method % MARKS.length] }));
      this.points.set(cell, mark);
      return mark;
    });
    roving(marks, 1, (i) => this.choose(points[i].cell));
    const grid = [
      ...ticks(x0, x1).map((t) => [make("line", { x1: px(t), x2: px(t), y1: top, y2: height - bottom, class: "grid" }),
        make("text", { x: px(t), y: height - bottom + 16, class: "tick middle" }, strength(t))]),
      ...ticks(y0, y1).map((t) => [make("line", { x1: left, x2: width - right, y1: py(t), y2: py(t), class: "grid" }),
        make("text", { x: left - 7, y: py(t) + 4, class: "tick end" }, strength(t))]),
    ].flat();
    this.plot.replaceChildren(make("figure", {},
      make("figcaption", {}, "Effect against side effect; the line joins settings with readable texts that no other beats in both; hollow marks are hatched squares"),
      make("svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width:${width}px`, role: "group", "aria-label": "Frontier of effect against side effect" },
        make("g", { "aria-hidden": "true" }, grid, line ? make("path", { d: `M${line}`, class: "frontier" }) : null,
          make("text", { x: (left + width - right) / 2, y: height - 8, class: "axis middle" }, `${data.side_effect.label} (less is better)`),
          make("text", { x: 13, y: height / 2 - 14, class: "axis middle", transform: `rotate(-90 13 ${height / 2 - 14})` }, data.effect.label)),
        marks)));
  }

  choose(cell) {
    this.set({ layer: cell.layer, alpha: cell.alpha });
  }

  // ---- drawn at every change ----

  update() {
    const { data, state } = this, prompt = data.prompts[state.prompt];
    this.picker.value = state.prompt;
    this.slider.value = state.alpha;
    this.layers.value = state.layer;
    this.output.textContent = strength(data.alphas[state.alpha]);
    this.slider.setAttribute("aria-valuetext", `strength ${strength(data.alphas[state.alpha])}`);
    this.question.replaceChildren(...(prompt ? [make("p", {}, prompt.text),
      ...prompt.images.map((src, i) => make("img", { src, alt: `image ${i + 1} of the prompt` }))] : []));
    this.drawCards();
    this.drawGauge();
    for (const [cells, name] of [[this.squares, "aria-pressed"], [this.points, "aria-pressed"]])
      for (const [cell, element] of cells ?? []) {
        const on = cell.layer === state.layer && cell.alpha === state.alpha;
        element.setAttribute(name, on);
        element.classList.toggle("chosen", on);
      }
    this.tabStops();
    this.writeHash();
    this.status.textContent = "";
    if (this.ask && prompt) this.complete();
  }

  /** One element of each map and of the frontier is in the tab order: the chosen one, or the first. */
  tabStops() {
    const charts = [...this.root.querySelectorAll(".sweep svg[role=group]")];
    for (const chart of charts) {
      const items = [...chart.querySelectorAll("[role=button]")];
      const stop = items.find((item) => item === document.activeElement) ?? items.find((item) => item.classList.contains("chosen")) ?? items[0];
      items.forEach((item) => item.setAttribute("tabindex", item === stop ? 0 : -1));
    }
  }

  wanted() {
    const { alpha, layer, prompt } = this.state, zero = this.data.alphas.indexOf(0);
    return [null, ...this.data.methods.keys()].map((method) => ({ method, layer: method === null ? null : layer, alpha: method === null ? zero : alpha, prompt }));
  }

  drawCards() {
    const before = this.texts.get(this.key({ method: null, prompt: this.state.prompt, alpha: 0 }));
    this.slots = this.wanted().map((place) => {
      const slot = make("article", { class: "card" });
      this.fillCard(slot, place, this.texts.get(this.key(place)), before);
      return slot;
    });
    this.cards.replaceChildren(...this.slots);
  }

  fillCard(slot, place, text, before) {
    const { data } = this, method = place.method === null ? null : data.methods[place.method];
    const missing = this.ask ? "…" : "The sweep has no text of this layer and strength.";
    const same = method && text && before && text.text === before.text;
    const words = !text ? [make("em", {}, missing)] : method && before
      ? changedWords(before.text, text.text).map(([word, changed]) => (changed ? make("mark", {}, word) : word)) : [text.text];
    const tags = !text ? [] : [text.broken && "broken", text.unsafe && this.marks.unsafe, same && "as without steering"].filter(Boolean);
    const steered = method && text && data.alphas[text.alpha] !== 0;
    slot.replaceChildren(
      make("h2", {}, method ? this.mark(place.method) : null, method ? method.label : "no steering"),
      make("p", { class: "text", lang: "" }, words),
      make("p", { class: "tags" }, tags.map((tag) => make("span", { class: "tag" }, tag)),
        steered && text.norm_ratio !== null ? make("span", { class: "ratio" }, `norm ratio ${number(text.norm_ratio)}`) : null),
      steered && text.tokens.length ? this.strip(text) : "");
  }

  /** The tokens of a text: hue for the sign of the cosine, lightness for its size, height for the norm ratio. */
  strip(text) {
    const words = text.words ?? this.data.words, highest = Math.max(...text.tokens.map((t) => t[2] ?? 0), 1e-9);
    const detail = make("p", { class: "detail" });
    const quoted = (word) => `“${word.replace(/\n/g, "⏎").trim() || "␣"}”`;
    const list = (top) => top.flatMap((_, i) => (i % 2 ? [] : [`${quoted(words[top[i]])} ${top[i + 1]}%`])).join(", ");
    const show = (token) => detail.replaceChildren(make("b", {}, quoted(words[token[0]])),
      ` · cosine ${number(token[1])} · norm ratio ${number(token[2])} · KL ${number(token[3])} nats`,
      make("br"), `steered: ${list(token[4])}`, make("br"), `unsteered: ${list(token[5])}`);
    const items = text.tokens.map((token, i) => {
      const size = token[1] === null ? 0 : Math.min(1, Math.abs(token[1]) / 0.5), high = 22 * Math.min(1, (token[2] ?? 0) / highest);
      return make("span", { class: "token", role: "button", tabindex: i ? -1 : 0, "aria-label": `token ${words[token[0]].trim() || "space"}`,
        onfocus: () => show(token), onpointerenter: () => show(token) },
        make("span", { class: `bar ${token[1] < 0 ? "less" : "more"}`, style: `height:${high.toFixed(1)}px;--shade:${(0.15 + 0.85 * size).toFixed(2)}` }),
        make("span", { class: "word" }, words[token[0]].replace(/\n/g, "⏎")));
    });
    roving(items, 1, (i) => show(text.tokens[i]));
    show(text.tokens.reduce((most, token) => (token[3] > most[3] ? token : most))); // where the vector changes most
    return make("div", { class: "tokens" }, make("div", { class: "strip", role: "group", "aria-label": "Tokens" }, items), detail);
  }

  /** Up to which norm ratio the texts of a method read well at the layer shown, and from which on they do not. */
  range(method) {
    const { fluent, breaks: known } = this.data.readable;
    const cells = this.data.cells.filter((c) => c.method === method && c.layer === this.state.layer && c.norm_ratio !== null);
    if (!cells.length) return { good: known, breaks: known };
    const least = Math.min(...cells.filter((c) => 1 - c.broken < fluent).map((c) => c.norm_ratio));
    const good = cells.map((c) => c.norm_ratio).filter((ratio) => ratio < least);
    return { good: good.length ? Math.max(...good) : null, breaks: Number.isFinite(least) ? least : null };
  }

  drawGauge() {
    const { data } = this, rows = data.methods.map((_, m) => {
      const text = this.texts.get(this.key({ ...this.state, method: m }));
      return { m, ...this.range(m), now: text && data.alphas[text.alpha] === 0 ? 0 : text?.norm_ratio ?? null };
    });
    const end = Math.max(...data.cells.map((c) => c.norm_ratio ?? 0), ...rows.flatMap(({ good, breaks, now }) => [good ?? 0, (breaks ?? 0) * 1.1, now ?? 0]), 0.1);
    const known = rows.some(({ good, breaks }) => good !== null || breaks !== null);
    this.gauge.replaceChildren(make("h2", { id: `${this.id}-ratio` }, "Norm ratio ‖αv‖ / ‖h‖"),
      ...rows.flatMap((row) => [make("p", { class: "reading" }, this.mark(row.m), this.reading(row)), this.track(row, end)]),
      make("p", { class: "hint" }, !known ? "How far texts stay readable was not measured here."
        : data.cells.length ? `Blue: on ${data.model}, at this layer, at least ${percent(data.readable.fluent)} of the texts of a square read well. Hatched: fewer do.`
          : `Blue: texts of ${data.model} were found to read well. Hatched: they broke.`));
  }

  reading({ m, good, breaks, now }) {
    const state = now === null ? "" : breaks === 0 ? ", but here the texts are broken without steering too" : breaks !== null && now >= breaks ? `, too strong: from ${number(breaks, 3)} on, more than ${percent(1 - this.data.readable.fluent)} of the texts are broken`
      : good === null ? "" : now > good ? `, beyond ${number(good, 3)}, the strongest that was seen to read well` : `, within ${number(good, 3)}, up to which texts read well`;
    return `${this.data.methods[m].label}: ${now === null ? "no text yet" : number(now, 3)}${state}`;
  }

  track({ good, breaks, now, m }, end) {
    const width = this.room, px = (ratio) => 10 + (ratio / end) * (width - 24);
    const band = (from, to, name, fill) => make("rect", { x: px(from), y: 6, width: Math.max(0, px(to) - px(from)), height: 14, class: name, fill });
    return make("svg", { viewBox: `0 0 ${width} 40`, "aria-hidden": "true" }, this.hatches(`gauge${m}`), band(0, end, "track"),
      good === null ? null : band(0, good, "validated"),
      breaks === null ? null : [band(breaks, end, "beyond"), band(breaks, end, "", `url(#${this.id}-gauge${m}-broken)`)],
      ticks(0, end, width / 90).map((t) => make("text", { x: px(t), y: 35, class: "tick middle" }, strength(t))),
      now === null ? null : make("g", { transform: `translate(${px(now)} 13)` }, make("line", { y1: -12, y2: 10, class: "needle" }),
        make("path", { d: MARKS[m % MARKS.length], fill: this.data.methods[m].color, class: "now" })));
  }

  // ---- answers of a model behind the page ----

  /** Ask for the texts that the page does not hold, one after another; a newer state replaces the request. */
  async complete() {
    this.running?.abort();
    const running = (this.running = new AbortController()), { prompt } = this.state;
    const missing = this.wanted().filter((place) => !this.texts.has(this.key(place)));
    if (!missing.length) return;
    let failure = "";
    await new Promise((resolve) => setTimeout(resolve, 120)); // the slider may still be moving
    for (const place of missing) {
      if (running.signal.aborted) return;
      if (this.texts.has(this.key(place))) { // at strength 0 all methods share one text
        this.receive(place, { done: this.texts.get(this.key(place)) });
        continue;
      }
      const { text, id, own } = this.data.prompts[prompt];
      const method = place.method === null ? null : this.data.methods[place.method].name;
      const request = { method, layer: this.data.layers[this.state.layer] ?? null, alpha: this.data.alphas[place.alpha], prompt: own ? { text } : { id } };
      try {
        this.status.textContent = `The model answers: ${method === null ? "no steering" : this.data.methods[place.method].label} …`;
        for await (const event of this.ask(request, running.signal)) {
          if (running.signal.aborted) return;
          this.receive(place, event);
        }
      } catch (error) {
        if (running.signal.aborted) return;
        failure = String(error.message ?? error); // the other methods may still answer
        this.slots[place.method === null ? 0 : place.method + 1].querySelector(".text").textContent = failure;
      }
    }
    if (!running.signal.aborted) this.status.textContent = failure;
  }

  receive(place, event) {
    if (event.error) throw new Error(event.error);
    const before = this.texts.get(this.key({ method: null, alpha: 0, prompt: place.prompt }));
    const slot = this.slots[place.method === null ? 0 : place.method + 1];
    const draft = { text: event.text, tokens: [], norm_ratio: null, alpha: place.alpha };
    if (event.done) this.texts.set(this.key(place), { ...event.done, ...place });
    this.fillCard(slot, place, event.done ? { ...event.done, ...place } : draft, before);
    if (event.done) this.drawGauge();
  }
}

/** Answers of the local server: one line of JSON for every event. */
export function askServer(address) {
  return async function* (request, signal) {
    const options = { method: "POST", body: JSON.stringify(request), headers: { "content-type": "application/json" }, signal };
    const response = await fetch(address + location.search, options).catch((error) => {
      throw signal.aborted ? error : new Error("the server does not answer: has it ended?");
    });
    if (!response.ok) throw new Error(`the server refused the request (${response.status}): ${await response.text()}`);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { value, done } = await reader.read();
      const lines = (rest + (value ?? "")).split("\n");
      rest = lines.pop();
      for (const line of lines) yield JSON.parse(line);
      if (done) return;
    }
  };
}

/** Answers of the kernel behind a notebook widget; an answer that nobody waits for any more is called off. */
export function askKernel(model) {
  const view = Math.random().toString(36).slice(2); // a widget that is shown twice gets all messages in both places
  let count = 0;
  return async function* (request, signal) {
    const id = `${view}-${++count}`, waiting = [];
    let wake = () => {};
    const receive = (message) => message.id === id && (waiting.push(message), wake());
    const cancel = () => (model.send({ cancel: id }), wake());
    model.on("msg:custom", receive);
    signal.addEventListener("abort", cancel);
    model.send({ id, request });
    try {
      while (!signal.aborted) {
        while (waiting.length) {
          const { event } = waiting.shift();
          if (event === null) return;
          yield event;
        }
        if (!signal.aborted) await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      model.off("msg:custom", receive);
      signal.removeEventListener("abort", cancel);
    }
  };
}

export default {
  render({ model, el }) {
    const page = mount(el, structuredClone(model.get("page")), { ask: model.get("live") ? askKernel(model) : null });
    return () => page.destroy();
  },
};
