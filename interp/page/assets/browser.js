"use strict";
/* The feature browser. Data: the JSON element that interp/page/browser.py writes (see there for the encoding).
   Every text enters the document through textContent; no markup is ever made from data. */
(() => {
  const ROW = 30; // height of a list row in px, --row in browser.css
  const ARRAYS = { u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

  // ---- data -------------------------------------------------------------------------------------------------------

  async function decode({ type, base64, packed }) {
    const binary = atob(base64);
    let bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    if (packed) bytes = joined(await inflate(bytes), ARRAYS[type].BYTES_PER_ELEMENT);
    return new ARRAYS[type](bytes.buffer);
  }
  const inflate = async (bytes) =>
    new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  /* Planes of bytes, lowest first, put back together. */
  function joined(planes, width) {
    const length = planes.length / width;
    const bytes = new Uint8Array(planes.length);
    for (let place = 0; place < width; place++) for (let i = 0; i < length; i++) bytes[i * width + place] = planes[place * length + i];
    return bytes;
  }

  async function decodeAll(value) {
    if (Array.isArray(value) || typeof value !== "object" || value === null) return value;
    if ("base64" in value) return decode(value);
    const entries = Object.entries(value);
    const items = await Promise.all(entries.map(([, item]) => decodeAll(item)));
    return Object.fromEntries(entries.map(([key], i) => [key, items[i]]));
  }

  class Features {
    static async read(payload) {
      const features = new Features();
      Object.assign(features, await decodeAll(payload));
      features.length = features.index.length;
      features.rowOf = new Map(Array.from(features.index, (index, row) => [index, row]));
      features.lens = features.lensScores();
      features.orders = {};
      return features;
    }
    /* The most that a feature raises any token's logit, per unit of activation; 0 where no token is recorded. */
    lensScores() {
      const { offsets, values } = this.promoted;
      return Float32Array.from({ length: this.length }, (_, row) => {
        let most = 0;
        for (let i = offsets[row]; i < offsets[row + 1]; i++) most = Math.max(most, values[i]);
        return most;
      });
    }
    /* All rows by a key; ties by index. */
    order(sort, ascending) {
      const key = this[sort];
      const way = ascending ? 1 : -1;
      return (this.orders[`${sort} ${ascending}`] ??= Uint32Array.from(this.index.keys()).sort((a, b) => way * (key[a] - key[b]) || this.index[a] - this.index[b]));
    }
    chips(side, row) {
      const { offsets, tokens, values } = this[side];
      const chips = [];
      for (let i = offsets[row]; i < offsets[row + 1]; i++) chips.push([this.tokens[tokens[i]], values[i]]);
      return chips;
    }
    histogramOf(row) {
      const { offsets, counts } = this.histogram;
      return {
        counts: counts.subarray(offsets[row], offsets[row + 1]),
        edges: this.edges.values.subarray(this.edges.offsets[row], this.edges.offsets[row + 1]),
      };
    }
    examplesOf(row) {
      const all = this.examples;
      const list = [];
      for (let i = all.offsets[row]; i < all.offsets[row + 1]; i++) {
        const window = [];
        for (let j = all.windows[i]; j < all.windows[i + 1]; j++) {
          window.push([this.tokens[all.tokens[j]], (all.levels[j] * all.scale[i]) / 65535]);
        }
        list.push({
          window,
          peak: all.peak[i],
          activation: all.activation[i],
          position: all.position[i],
          document: this.documents[all.document[i]],
        });
      }
      return list;
    }
    /* Which rows hold `wanted` (lower case), as a flag each. A text is found across neighbouring tokens. Every distinct
       token is looked at once; windows are then scanned as numbers, and spelled only where a match may begin. */
    search(scope, wanted) {
      const found = new Uint8Array(this.length);
      this.lower ??= this.tokens.map((token) => token.toLowerCase());
      const kinds = Uint8Array.from(this.lower, (token) => (token.includes(wanted) ? WHOLE : begins(token, wanted) ? BEGIN : 0));
      if (scope !== "contexts" && scope !== "active") this.searchPromoted(kinds, found);
      if (scope !== "promoted") this.searchContexts(kinds, found, wanted, scope === "active");
      return found;
    }
    searchPromoted(kinds, found) {
      const { offsets, tokens } = this.promoted;
      for (let row = 0; row < this.length; row++)
        for (let i = offsets[row]; i < offsets[row + 1] && !found[row]; i++) found[row] = kinds[tokens[i]] === WHOLE;
    }
    searchContexts(kinds, found, wanted, active) {
      const { offsets, windows, tokens, levels } = this.examples;
      for (let row = 0; row < this.length; row++) {
        for (let context = offsets[row]; context < offsets[row + 1] && !found[row]; context++) {
          const end = windows[context + 1];
          for (let i = windows[context]; i < end && !found[row]; i++) {
            const kind = kinds[tokens[i]];
            if (!kind || (active && !levels[i])) continue;
            if (kind === WHOLE) found[row] = 1;
            else {
              let text = this.lower[tokens[i]];
              const enough = text.length + wanted.length;
              for (let j = i + 1; j < end && text.length < enough && !(active && !levels[j]); j++) text += this.lower[tokens[j]];
              if (text.includes(wanted)) found[row] = 1;
            }
          }
        }
      }
    }
  }
  const [WHOLE, BEGIN] = [1, 2];
  /* Whether a text that goes on after `token` may have begun in it: an end of the token is a beginning of `wanted`. */
  function begins(token, wanted) {
    for (let length = Math.min(token.length, wanted.length - 1); length > 0; length--) if (token.endsWith(wanted.slice(0, length))) return true;
    return false;
  }

  // ---- text -------------------------------------------------------------------------------------------------------

  const NAMED = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
  const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\u00a0]/u; // controls, direction marks, line separators, half characters

  function symbol(character) {
    if (NAMED[character]) return NAMED[character];
    const code = character.codePointAt(0);
    if (code >= 0xd800 && code <= 0xdfff) return "\ufffd";
    return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  }

  /* A token as nodes: what cannot be seen becomes a visible, muted mark; `spaces` also marks leading and lone spaces. */
  function shown(token, spaces) {
    const nodes = [];
    let plain = "";
    const flush = () => plain && (nodes.push(document.createTextNode(plain)), (plain = ""));
    const blank = spaces ? token.length - token.trimStart().length : 0;
    [...(token || "∅")].forEach((character, i) => {
      const mark = character === " " && i < blank ? "␣" : INVISIBLE.test(character) ? symbol(character) : null;
      if (mark === null) plain += character;
      else flush(), nodes.push(make("span", { class: "mark" }, mark));
    });
    flush();
    return nodes;
  }

  function make(name, attributes = {}, ...children) {
    const element = name === "svg" || SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(key, value);
      else if (value !== null) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }
  const SVG = new Set(["rect", "line", "text", "title"]);

  /* Three significant digits, trailing zeros kept so that columns line up: 21.0, 9.83, 0.0625, 1,240. */
  const plainNumber = (value) =>
    value === 0 ? "0" : Math.abs(value) >= 1000 || Math.abs(value) < 1e-4 ? value.toLocaleString("en", { maximumSignificantDigits: 3 }) : value.toPrecision(3);
  const count = (value) => value.toLocaleString("en");
  const percent = (value) => {
    const share = value * 100;
    if (share === 0) return "0 %";
    return `${share >= 10 ? share.toFixed(1) : share >= 0.1 ? share.toFixed(2) : share >= 0.001 ? share.toFixed(3) : share.toExponential(0)} %`;
  };

  // ---- one token, one context, one histogram ----------------------------------------------------------------------

  function tokenSpan([token, value], { max, peak = false }) {
    const on = value > 0;
    const blank = token.trim() === "";
    const span = make("span", { class: `token${on ? " on" : ""}${peak ? " peak" : ""}` });
    // The shade begins at the word, not at the space before it, which may stand at the end of the line above.
    const space = on && !blank ? token.length - token.trimStart().length : 0;
    if (!on) span.append(...shown(token, false));
    else {
      const before = space ? shown(token.slice(0, space), false) : [];
      span.append(...before, make("span", { class: "ink" }, ...shown(token.slice(space), blank)));
      span.style.setProperty("--a", Math.max(0.06, Math.min(1, value / max)).toFixed(3));
      span.dataset.value = value.toPrecision(4);
    }
    return span;
  }

  function preview(example, max, promoted) {
    // Without a context, dead or left off the page, a feature is told by what it promotes.
    if (!example) return make("span", { class: "preview writes" }, ...promoted.slice(0, 4).map(([token]) => make("bdi", {}, ...shown(token, true))));
    const { window, peak } = example;
    const near = (tokens) => tokens.map((token) => tokenSpan([token[0], 0], { max }));
    const hit = tokenSpan(window[peak], { max });
    hit.classList.add("hit");
    return make(
      "span", { class: "preview" },
      make("span", { class: "left" }, make("span", {}, ...near(window.slice(Math.max(0, peak - 10), peak)))),
      hit,
      make("span", { class: "right" }, make("span", {}, ...near(window.slice(peak + 1, peak + 11)))),
    );
  }

  function contextRow(example, max) {
    const { window, peak, activation, document: source, position } = example;
    const tokens = window.map((token, i) => tokenSpan(token, { max, peak: i === peak }));
    return make(
      "li", {},
      make("span", { class: "strength" }, plainNumber(activation)),
      make("div", { class: "window", dir: "auto" }, ...tokens),
      make("span", { class: "source" }, make("bdi", {}, source), make("span", {}, `token ${count(position)}`)),
    );
  }

  const isGeometric = (edges) => edges.length > 2 && edges[0] > 0 && Math.abs(Math.log(edges[1] / edges[0]) - Math.log(edges[2] / edges[1])) < 1e-3;

  function histogram({ counts, edges }) {
    const [width, height, base, top] = [276, 96, 78, 14];
    const most = Math.max(...counts, 1);
    const step = width / Math.max(counts.length, 1);
    const total = counts.reduce((sum, value) => sum + value, 0);
    const label = `Histogram of activations: ${count(total)} activations from ${plainNumber(edges[0])} to ${plainNumber(edges[edges.length - 1])}, highest bin ${count(most)}`;
    const svg = make("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    counts.forEach((value, i) => {
      const tall = value ? Math.max(1, (value / most) * (base - top)) : 0;
      const bar = make("rect", { x: i * step + 0.5, y: base - tall, width: Math.max(1, step - 1), height: tall });
      bar.append(make("title", {}, `${plainNumber(edges[i])} to ${plainNumber(edges[i + 1])}: ${count(value)}`));
      svg.append(bar);
    });
    svg.append(
      make("line", { x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }),
      make("text", { x: 0, y: 10 }, `${count(most)} tokens in the highest bin`),
      make("text", { x: 0, y: height - 5 }, plainNumber(edges[0])),
      make("text", { x: width / 2, y: height - 5, "text-anchor": "middle" }, isGeometric(edges) ? "activation, log scale" : "activation"),
      make("text", { x: width, y: height - 5, "text-anchor": "end" }, plainNumber(edges[edges.length - 1])),
    );
    return svg;
  }

  function chipList(label, sign, chips) {
    const items = chips.map(([token, value]) =>
      make("li", {}, make("bdi", {}, ...shown(token, true)), make("small", {}, `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}`)));
    return make("div", { class: sign }, make("h4", {}, label), items.length ? make("ul", { class: "chips" }, ...items) : make("p", { class: "sign" }, "none recorded"));
  }

  // ---- the browser ------------------------------------------------------------------------------------------------

  const SORTS = { index: "Index", density: "Density", max: "Max", lens: "Lens" };
  const EXPLAINED = { lens: "lens score: the most that the feature raises any token's logit, per unit of activation" };
  const SCOPES = { anywhere: "anywhere", active: "tokens it fires on", contexts: "contexts", promoted: "promoted tokens" };
  const FILTERS = { alive: "Alive", dead: "Dead", all: "All" };

  class Browser {
    static async open(root) {
      root.setAttribute("aria-busy", "true");
      const data = document.getElementById(root.dataset.browser);
      const features = await Features.read(JSON.parse(data.textContent));
      data.remove(); // its text is as large as the page
      root.removeAttribute("aria-busy");
      return new Browser(root, features);
    }
    constructor(root, features) {
      this.root = root;
      this.features = features;
      this.state = { query: "", scope: "anywhere", filter: "alive", sort: "max", ascending: false, row: null };
      this.build();
      this.refresh();
      if (!this.follow() && this.shown.length) this.choose(this.shown[0]);
      window.addEventListener("hashchange", () => this.follow());
      document.addEventListener("keydown", (event) => this.shortcut(event));
    }

    // -- building
    build() {
      this.search = make("input", {
        type: "search", placeholder: "Search tokens, or #123 for one feature", "aria-label": "Search features", spellcheck: "false",
        autocomplete: "off", input: () => this.set({ query: this.search.value }), keydown: (event) => this.searchKey(event),
      });
      this.scope = make("select", { "aria-label": "Where to search", change: () => this.set({ scope: this.scope.value }) },
        ...Object.entries(SCOPES).map(([value, label]) => make("option", { value }, label)));
      const dead = this.features.density.reduce((sum, value) => sum + (value === 0), 0);
      const sizes = { alive: this.features.length - dead, dead, all: this.features.length };
      this.filters = Object.entries(FILTERS).map(([name, label]) =>
        make("button", { type: "button", "data-filter": name, click: () => this.set({ filter: name }) }, `${label} ${count(sizes[name])}`));
      this.sorts = Object.entries(SORTS).map(([name, label]) =>
        make("button", { type: "button", "data-sort": name, click: () => this.sortBy(name) }, label));
      this.count = make("span", { class: "count", role: "status" });
      this.spacer = make("div", { role: "presentation" });
      this.rows = make("div", {
        class: "rows", role: "listbox", tabindex: "0", "aria-label": "Features",
        scroll: () => this.drawRows(), keydown: (event) => this.listKey(event),
        click: (event) => { const option = event.target.closest(".option"); if (option) this.choose(+option.dataset.row, { remember: true }); },
      }, this.spacer);
      const columns = make("div", { class: "columns", role: "group", "aria-label": "Sort by" }, ...this.sorts, make("span", { class: "preview-title" }, "strongest context"));
      this.detail = make("article", { class: "detail", "aria-live": "polite", "aria-label": "Chosen feature" });
      this.tip = make("div", { class: "tip", hidden: "" });
      this.detail.addEventListener("pointerover", (event) => this.showTip(event));
      this.detail.addEventListener("pointerleave", () => (this.tip.hidden = true));
      this.root.append(
        make("div", { class: "bar", role: "search" }, this.search, this.scope,
          make("span", { class: "choice", role: "group", "aria-label": "Which features" }, ...this.filters), this.count),
        make("div", { class: "panes" }, make("div", { class: "list" }, columns, this.rows), this.detail),
        this.tip,
      );
      const { shown: most, recorded } = this.features.sampled;
      if (most < recorded)
        this.root.append(make("p", { class: "sampling" }, `Sampled to keep this page small: ${count(most)} of the up to ${count(recorded)} recorded contexts of each feature are here, the strongest and others evenly spaced among the recorded ones. Searches see only these. Densities, histograms and promoted tokens are complete.`));
      new ResizeObserver(() => this.drawRows()).observe(this.rows);
    }

    // -- state to list
    set(change) {
      Object.assign(this.state, change);
      this.refresh();
      if (this.shown.length && !this.shown.includes(this.state.row)) this.choose(this.shown[0]);
    }
    sortBy(name) {
      const again = this.state.sort === name;
      this.set({ sort: name, ascending: again ? !this.state.ascending : name === "index" });
    }
    refresh() {
      const { filter, sort, ascending } = this.state;
      const { density } = this.features;
      const matches = this.matcher();
      this.shown = this.features.order(sort, ascending).filter((row) => (filter === "all" || density[row] > 0 === (filter === "alive")) && matches(row));
      for (const button of this.filters) button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
      for (const button of this.sorts) {
        const on = button.dataset.sort === sort;
        button.setAttribute("aria-pressed", String(on));
        if (on) button.dataset.direction = ascending ? "ascending" : "descending";
        else delete button.dataset.direction;
        const what = EXPLAINED[button.dataset.sort] ?? button.textContent.toLowerCase();
        button.title = on ? `sorted by ${what}, ${button.dataset.direction}; press to turn round` : `sort by ${what}`;
      }
      this.count.textContent = `${count(this.shown.length)} of ${count(this.features.length)} features`;
      this.spacer.style.height = `${this.shown.length * ROW}px`;
      this.rows.scrollTop = 0;
      this.drawRows();
    }
    matcher() {
      const { query, scope } = this.state;
      const wanted = query.replaceAll("↵", "\n").replaceAll("␣", " ").toLowerCase();
      if (wanted.trim() === "" && !wanted.includes("\n")) return () => true;
      const number = /^\s*(#?)(\d+)\s*$/.exec(wanted);
      const exact = number ? Number(number[2]) : null;
      if (number && number[1]) return (row) => this.features.index[row] === exact;
      const found = this.features.search(scope, wanted);
      return (row) => found[row] === 1 || this.features.index[row] === exact;
    }

    // -- list
    drawRows() {
      const first = Math.max(0, Math.floor(this.rows.scrollTop / ROW) - 6);
      const last = Math.min(this.shown.length, Math.ceil((this.rows.scrollTop + this.rows.clientHeight) / ROW) + 6);
      const options = [];
      for (let place = first; place < last; place++) options.push(this.option(place));
      const empty = this.shown.length ? [] : [make("p", { class: "empty" }, "No feature matches. Try fewer letters, another place to search, or “All”.")];
      this.spacer.replaceChildren(...options, ...empty);
      this.markChosen();
    }
    option(place) {
      const row = this.shown[place];
      const { index, density, max, lens } = this.features;
      const [example] = this.features.examplesOf(row);
      const option = make(
        "div",
        { class: `option${density[row] > 0 ? "" : " dead"}`, role: "option", id: `${this.root.id}-option-${index[row]}`, "data-row": row, "data-index": index[row], "aria-setsize": this.shown.length, "aria-posinset": place + 1 },
        make("span", { class: "value" }, String(index[row])),
        make("span", { class: "value" }, density[row] > 0 ? percent(density[row]) : "dead"),
        make("span", { class: "value" }, density[row] > 0 ? plainNumber(max[row]) : "–"),
        make("span", { class: "value" }, lens[row] > 0 ? lens[row].toFixed(2) : "–"),
        preview(example, max[row] || 1, this.features.chips("promoted", row)),
      );
      option.style.top = `${place * ROW}px`;
      return option;
    }
    markChosen() {
      let active = null;
      for (const option of this.spacer.querySelectorAll(".option")) {
        const chosen = +option.dataset.row === this.state.row;
        option.setAttribute("aria-selected", String(chosen));
        if (chosen) active = option.id;
      }
      if (active) this.rows.setAttribute("aria-activedescendant", active);
      else this.rows.removeAttribute("aria-activedescendant");
    }
    choose(row, { remember = false } = {}) {
      this.state.row = row;
      const place = this.shown.indexOf(row);
      if (place >= 0) {
        const [top, bottom] = [place * ROW, (place + 1) * ROW];
        if (top < this.rows.scrollTop) this.rows.scrollTop = top;
        else if (bottom > this.rows.scrollTop + this.rows.clientHeight) this.rows.scrollTop = bottom - this.rows.clientHeight;
      }
      this.drawRows();
      this.drawDetail(row, place);
      if (remember) history.replaceState(null, "", `#feature-${this.features.index[row]}`);
    }
    move(steps) {
      if (!this.shown.length) return;
      const place = this.shown.indexOf(this.state.row);
      this.choose(this.shown[Math.max(0, Math.min(this.shown.length - 1, place + steps))], { remember: true });
    }

    // -- the chosen feature
    drawDetail(row, place) {
      const { index, density, max, mean, lens, population } = this.features;
      const examples = this.features.examplesOf(row);
      const alive = density[row] > 0;
      const fact = (name, value, note = "") => make("div", {}, make("dt", {}, name), make("dd", {}, value, ...(note ? [make("span", {}, ` ${note}`)] : [])));
      const facts = alive
        ? [fact("Density", percent(density[row]), `one in ${plainNumber(1 / density[row])} tokens`), fact("Max", plainNumber(max[row])), fact("Mean when active", plainNumber(mean[row])), fact("Lens score", lens[row].toFixed(2))]
        : [fact("Density", "0", `never fired on ${population}`)];
      const step = (label, by, off) => make("button", { type: "button", click: () => this.move(by), "aria-label": by < 0 ? "Previous feature" : "Next feature", ...(off ? { disabled: "" } : {}) }, label);
      const link = make("a", { href: `#feature-${index[row]}` }, "Link");
      const { counts, edges } = this.features.histogramOf(row);
      const left = make("div", {}, make("h4", {}, "Activations where it fires"), counts.length && alive ? histogram({ counts, edges }) : make("p", { class: "sign" }, "none"));
      const right = make("div", {}, chipList("Promotes (change in logit per unit)", "promoted", this.features.chips("promoted", row)), chipList("Suppresses", "suppressed", this.features.chips("suppressed", row)));
      const head = make("header", {}, make("h3", {}, `Feature ${index[row]}`), link, step("↑", -1, place <= 0), step("↓", 1, place < 0 || place === this.shown.length - 1));
      this.detail.replaceChildren(head, make("dl", { class: "numbers" }, ...facts), make("div", { class: "logits" }, left, right), ...this.contexts(examples, max[row]));
    }
    contexts(examples, max) {
      const { shown: most, recorded } = this.features.sampled;
      if (!examples.length) return most ? [] : [make("p", { class: "sign" }, "No contexts on this page: they did not fit into its size.")];
      const what = most < recorded ? `${count(examples.length)} of up to ${count(recorded)} recorded contexts, the strongest first` : `Contexts of the ${count(examples.length)} strongest activations`;
      const scale = make("span", { class: "scale", "aria-hidden": "true" }, "0", make("i"), plainNumber(max));
      return [
        make("div", { class: "contexts-head" }, make("h4", {}, what), scale),
        make("ol", { class: "contexts" }, ...examples.map((example) => contextRow(example, max || 1))),
      ];
    }
    showTip(event) {
      const token = event.target.closest(".token");
      this.tip.hidden = !token;
      if (!token) return;
      this.tip.textContent = token.dataset.value ? `activation ${token.dataset.value}` : "not active";
      const box = token.getClientRects()[0];
      this.tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - this.tip.offsetWidth - 4))}px`;
      this.tip.style.top = `${box.top > 30 ? box.top - 28 : box.bottom + 6}px`;
    }

    // -- keys and address
    listKey(event) {
      const page = Math.max(1, Math.floor(this.rows.clientHeight / ROW) - 1);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
      if (steps === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.move(steps);
    }
    searchKey(event) {
      if (event.key !== "ArrowDown" && event.key !== "Enter") return;
      event.preventDefault();
      this.rows.focus();
    }
    shortcut(event) {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
      event.preventDefault();
      this.search.focus();
    }
    /* Show the feature that the address names; true if there is one. */
    follow() {
      const match = /^#feature-(\d+)$/.exec(location.hash);
      const row = match ? this.features.rowOf.get(Number(match[1])) : undefined;
      if (row === undefined) return false;
      if (!this.shown.includes(row)) {
        this.search.value = "";
        this.set({ query: "", filter: "all" });
      }
      this.choose(row);
      this.root.scrollIntoView();
      return true;
    }
  }

  for (const root of document.querySelectorAll("[data-browser]")) Browser.open(root);
})();
