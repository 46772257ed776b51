"use strict";
/* The feature browser. Data: the JSON element that interp/page/browser.py writes (see there for the encoding).
   Every text enters the document through textContent; no markup is ever made from data. */
(() => {
  const ROW = 30; // height of a list row in px, --row in browser.css
  const ARRAYS = { u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
  const SEPARATOR = "\u0001"; // between texts that a search must not run across

  // ---- data -------------------------------------------------------------------------------------------------------

  function decode({ type, base64 }) {
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return new ARRAYS[type](bytes.buffer);
  }

  function decodeAll(value) {
    if (Array.isArray(value) || typeof value !== "object" || value === null) return value;
    if ("base64" in value) return decode(value);
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, decodeAll(item)]));
  }

  class Features {
    constructor(payload) {
      Object.assign(this, decodeAll(payload));
      this.length = this.index.length;
      this.rowOf = new Map(Array.from(this.index, (index, row) => [index, row]));
      this.texts = {};
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
    /* Lower-case texts of one scope, one string per feature; made at the first search. */
    searchTexts(scope) {
      return (this.texts[scope] ??= Array.from({ length: this.length }, (_, row) => this.searchText(scope, row).toLowerCase()));
    }
    searchText(scope, row) {
      if (scope === "promoted") return this.chips("promoted", row).map(([token]) => token).join(SEPARATOR);
      let text = "";
      for (const { window } of this.examplesOf(row)) {
        if (scope === "contexts") for (const [token] of window) text += token;
        // Neighbouring active tokens stay together, so that a word of several tokens is found.
        else for (const [token, value] of window) text += value > 0 ? token : text.endsWith(SEPARATOR) ? "" : SEPARATOR;
        text += SEPARATOR;
      }
      return text;
    }
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

  function preview(example, max) {
    if (!example) return make("span", { class: "preview" });
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

  const SORTS = { index: "Index", density: "Density", max: "Max" };
  const SCOPES = { anywhere: "anywhere", active: "tokens it fires on", contexts: "contexts", promoted: "promoted tokens" };
  const FILTERS = { alive: "Alive", dead: "Dead", all: "All" };

  class Browser {
    constructor(root) {
      this.root = root;
      this.features = new Features(JSON.parse(document.getElementById(root.dataset.browser).textContent));
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
      const { density, index } = this.features;
      const matches = this.matcher();
      const rows = [];
      for (let row = 0; row < this.features.length; row++) {
        if (filter !== "all" && (density[row] > 0) !== (filter === "alive")) continue;
        if (matches(row)) rows.push(row);
      }
      const key = this.features[sort];
      const way = ascending ? 1 : -1;
      this.shown = rows.sort((a, b) => way * (key[a] - key[b]) || index[a] - index[b]);
      for (const button of this.filters) button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
      for (const button of this.sorts) {
        const on = button.dataset.sort === sort;
        button.setAttribute("aria-pressed", String(on));
        if (on) button.dataset.direction = ascending ? "ascending" : "descending";
        else delete button.dataset.direction;
        button.title = on ? `sorted, ${button.dataset.direction}; press to turn round` : `sort by ${button.textContent.toLowerCase()}`;
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
      const scopes = scope === "anywhere" ? ["promoted", "contexts"] : [scope];
      const texts = scopes.map((name) => this.features.searchTexts(name));
      return (row) => this.features.index[row] === exact || texts.some((list) => list[row].includes(wanted));
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
      const { index, density, max } = this.features;
      const [example] = this.features.examplesOf(row);
      const option = make(
        "div",
        { class: `option${density[row] > 0 ? "" : " dead"}`, role: "option", id: `${this.root.id}-option-${index[row]}`, "data-row": row, "data-index": index[row], "aria-setsize": this.shown.length, "aria-posinset": place + 1 },
        make("span", { class: "value" }, String(index[row])),
        make("span", { class: "value" }, density[row] > 0 ? percent(density[row]) : "dead"),
        make("span", { class: "value" }, density[row] > 0 ? plainNumber(max[row]) : "–"),
        preview(example, max[row] || 1),
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
      const { index, density, max, mean, population } = this.features;
      const examples = this.features.examplesOf(row);
      const alive = density[row] > 0;
      const fact = (name, value, note = "") => make("div", {}, make("dt", {}, name), make("dd", {}, value, ...(note ? [make("span", {}, ` ${note}`)] : [])));
      const facts = alive
        ? [fact("Density", percent(density[row]), `one in ${plainNumber(1 / density[row])} tokens`), fact("Max", plainNumber(max[row])), fact("Mean when active", plainNumber(mean[row]))]
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
      if (!examples.length) return [];
      const scale = make("span", { class: "scale", "aria-hidden": "true" }, "0", make("i"), plainNumber(max));
      return [
        make("div", { class: "contexts-head" }, make("h4", {}, `Contexts of the ${count(examples.length)} strongest activations`), scale),
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

  for (const root of document.querySelectorAll("[data-browser]")) new Browser(root);
})();
