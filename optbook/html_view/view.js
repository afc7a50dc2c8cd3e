// Draws one attention record inside the element that this script stands in. _view.py says how the record is packed.
(() => {
  "use strict";

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const parse = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  // From no attention to all of it. The first color is close to the page, and lightness changes by equal steps, so that
  // equal differences look equal, also to eyes that see fewer hues.
  const RAMP = {
    light: ["#f3f2db", "#c8ddaf", "#8acc97", "#4ab598", "#039999", "#077993", "#02598e", "#023a83", "#171b67"].map(parse),
    dark: ["#20243c", "#253b64", "#17558d", "#087695", "#01969c", "#39b59a", "#7dce8f", "#c0e293", "#faf5a5"].map(parse),
  };
  const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  const luminance = ([red, green, blue]) => {
    const linear = (channel) => (channel <= 10 ? channel / 3294 : ((channel / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  };

  function color(ramp, share) {
    const place = clamp(share, 0, 1) * (ramp.length - 1);
    const index = Math.min(Math.floor(place), ramp.length - 2);
    return ramp[index].map((low, channel) => Math.round(low + (place - index) * (ramp[index + 1][channel] - low)));
  }

  function percent(share, digits = 0) {
    const smallest = 1 / 10 ** digits;
    if (share > 0 && 100 * share < smallest / 2) return `<${smallest}%`;
    return `${(100 * share).toFixed(digits)}%`;
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name, value);
      else made.setAttribute(name, value);
    }
    made.append(...children); // strings become text, never markup
    return made;
  }

  function readRecord(root) {
    const record = JSON.parse(root.dataset.record);
    const bytes = Uint8Array.from(atob(root.dataset.weights), (character) => character.charCodeAt(0));
    const codes = new DataView(bytes.buffer);
    const length = record.tokens[0].length;
    const cells = record.causal ? (length * (length + 1)) / 2 : length * length;
    const weight = (layer, row, head, query, key) => {
      if (record.causal && key > query) return 0;
      const map = (layer * record.tokens.length + row) * record.heads.length + head;
      const cell = record.causal ? (query * (query + 1)) / 2 + key : query * length + key;
      return codes.getUint16(2 * (map * cells + cell), true) / 65535;
    };
    return { ...record, length, weight };
  }

  function build(root) {
    const { layers, heads, tokens, real, length, weight } = readRecord(root);
    const stage = root.querySelector(".ob-stage");
    const positions = [...Array(length).keys()];
    // layer, head and row are places in the record, not the model's numbers. A chosen token is query and key at once.
    const state = { row: 0, layer: 0, head: 0, query: 0, key: 0, hatch: true, withoutFirst: false };
    let ramp = RAMP.light;

    const label = (position) => tokens[state.row][position];
    const isReal = (position) => real[state.row][position] === 1;
    const headName = (layer, head) => `layer ${layers[layer]}, head ${heads[head]}`;
    const isDark = () => luminance(getComputedStyle(root).color.match(/\d+/g).map(Number)) > 0.5;

    /** How much of its attention a query gives to a key; without the first real token, of what is left. */
    function share(query, key, layer = state.layer, head = state.head) {
      const plain = weight(layer, state.row, head, query, key);
      const first = real[state.row].indexOf(1);
      if (!state.withoutFirst || first < 0) return plain;
      const rest = 1 - weight(layer, state.row, head, query, first);
      return key === first || rest < 0.001 ? 0 : plain / rest;
    }

    function paint(target, paintedShare) {
      const background = color(ramp, paintedShare);
      target.style.background = `rgb(${background})`;
      target.style.color = luminance(background) > 0.18 ? "#000" : "#fff";
    }

    function drawMap(canvas, layer, head, pixels) {
      const scale = Math.max(2, Math.ceil(pixels / length));
      canvas.width = canvas.height = scale * length;
      const context = canvas.getContext("2d");
      for (const query of positions) {
        for (const key of positions) {
          const value = share(query, key, layer, head);
          if (key > query && value === 0) continue; // the future stays empty
          context.fillStyle = `rgb(${color(ramp, value)})`;
          context.fillRect(key * scale, query * scale, scale, scale);
        }
      }
      if (state.hatch) hatchPadding(context, scale, canvas.width / 18);
    }

    /** Stripes over the rows and columns of padding, as far as the causal mask leaves them. */
    function hatchPadding(context, scale, distance) {
      const style = getComputedStyle(root);
      const size = scale * length;
      context.save();
      context.beginPath();
      for (const padded of positions.filter((position) => !isReal(position))) {
        context.rect(0, padded * scale, (padded + 1) * scale, scale);
        context.rect(padded * scale, padded * scale, scale, size);
      }
      context.clip();
      context.fillStyle = style.getPropertyValue("background-color");
      context.globalAlpha = 0.65;
      context.fillRect(0, 0, size, size);
      context.globalAlpha = 0.45;
      context.strokeStyle = style.color;
      context.lineWidth = distance / 8;
      context.beginPath();
      for (let start = 0; start < 2 * size; start += distance) {
        context.moveTo(start, 0);
        context.lineTo(0, start);
      }
      context.stroke();
      context.restore();
    }

    // What stands above both the grid of heads and the enlarged head.

    const scaleBar = element("span", { class: "ob-scale" });
    const legend = element("span", { class: "ob-legend ob-soft" }, "attention 0%", scaleBar, "100%");

    function checkbox(text, name) {
      const change = (event) => {
        state[name] = event.target.checked;
        render();
      };
      const box = element("input", { type: "checkbox", change });
      box.checked = state[name];
      return element("label", {}, box, text);
    }

    function choice(text, options, name) {
      const change = (event) => {
        state[name] = event.target.selectedIndex;
        if (name === "row") chooseLast();
        render();
      };
      const select = element("select", { change }, ...options.map((option) => element("option", {}, option)));
      const shown = element("label", {}, text, select);
      shown.hidden = options.length < 2;
      return Object.assign(shown, { update: () => (select.selectedIndex = state[name]) });
    }

    const excerpt = (words, row) => {
      const text = words.filter((_, position) => real[row][position]).join("");
      return `${row}: ${text.length > 40 ? `${text.slice(0, 40)}…` : text}`;
    };
    const bar = element("div", { class: "ob-bar" }, choice("sequence", tokens.map(excerpt), "row"));
    if (real.some((row) => row.includes(0))) bar.append(checkbox("hatch padding", "hatch"));
    bar.append(checkbox("leave out the first token, rows rescaled", "withoutFirst"), legend);

    // All heads.

    const thumbnails = layers.map((_, layer) =>
      heads.map((_, head) => {
        const canvas = element("canvas", { "aria-hidden": "true" });
        const click = () => open(layer, head);
        return { canvas, button: element("button", { type: "button", "aria-label": headName(layer, head), click }, canvas) };
      }),
    );
    const part = (role, content) => element("span", { role }, content);
    const row = (...parts) => element("div", { role: "row" }, ...parts);
    const grid = element(
      "div",
      { role: "grid", "aria-label": "all heads", class: "ob-heads", keydown: moveAmongHeads },
      row(part("columnheader", ""), ...heads.map((head) => part("columnheader", heads.length > 8 ? head : `head ${head}`))),
      ...layers.map((number, layer) =>
        row(part("rowheader", `layer ${number}`), ...thumbnails[layer].map(({ button }) => part("gridcell", button))),
      ),
    );
    grid.style.setProperty("--heads", heads.length);
    const hint =
      "Each map is a head: a row for each token that looks, a column for each token looked at. " +
      "Empty is the future, which the causal mask hides. Choose a map to enlarge it.";
    const overview = element(
      "div",
      {},
      element("p", { class: "ob-soft" }, hint),
      element("div", { class: "ob-scroll" }, grid),
    );

    function moveAmongHeads(event) {
      const step = ARROWS[event.key];
      if (step) {
        state.layer = clamp(state.layer + step[0], 0, layers.length - 1);
        state.head = clamp(state.head + step[1], 0, heads.length - 1);
      } else if (event.key === "Home") state.head = 0;
      else if (event.key === "End") state.head = heads.length - 1;
      else return;
      event.preventDefault();
      placeTabStops();
      thumbnails[state.layer][state.head].button.focus();
    }

    // One head: its map with a label on each row and column, and the text twice.

    const canvas = element("canvas", { pointermove: pointAtCell, pointerdown: pointAtCell });
    const queryMark = element("div", { class: "ob-query" });
    const keyMark = element("div", { class: "ob-key" });
    const makeLabels = () =>
      positions.map((position) => element("span", { class: "ob-label", pointerover: () => choose(position) }));
    const labels = { rows: makeLabels(), columns: makeLabels() };
    const map = element(
      "div",
      { class: "ob-map", role: "application", tabindex: "0", "aria-roledescription": "attention map", keydown: moveCell },
      element("span", { class: "ob-corner", "aria-hidden": "true" }, "looks ↓  at →"),
      element("div", { class: "ob-columns", "aria-hidden": "true" }, ...labels.columns),
      element("div", { class: "ob-rows", "aria-hidden": "true" }, ...labels.rows),
      element("div", { class: "ob-cells" }, canvas, queryMark, keyMark),
    );
    map.style.setProperty("--length", length);
    map.style.setProperty("--largest", `${clamp(Math.floor(420 / length), 15, 34)}px`);

    function makeLine(role, chipRole) {
      const chips = positions.map((position) =>
        element(
          "span",
          { class: "ob-chip", role: chipRole, pointerover: () => choose(position), focus: () => choose(position) },
          element("span", { class: "ob-token" }),
          element("span", { class: "ob-share" }),
        ),
      );
      const title = element("p", { class: "ob-line-title" });
      return { title, chips, line: element("div", { class: "ob-line", role }, ...chips) };
    }
    const looksAt = makeLine("listbox", "option");
    const lookedAtBy = makeLine("list", "listitem");
    looksAt.line.setAttribute("aria-label", "tokens: choose one to see where it looks and who looks at it");
    looksAt.line.addEventListener("keydown", moveAmongTokens);
    const readout = element("p", { class: "ob-readout", role: "status" });

    const detailTitle = element("b");
    const layerChoice = choice("layer", layers, "layer");
    const headChoice = choice("head", heads, "head");
    const detail = element(
      "div",
      { keydown: (event) => event.key === "Escape" && close(event) },
      element(
        "div",
        { class: "ob-bar" },
        element("button", { type: "button", class: "ob-back", click: close }, "← all heads"),
        detailTitle,
        layerChoice,
        headChoice,
      ),
      element(
        "div",
        { class: "ob-detail" },
        element("div", { class: "ob-text" }, looksAt.title, looksAt.line, lookedAtBy.title, lookedAtBy.line, readout),
        element("div", { class: "ob-map-scroll" }, map),
      ),
    );
    detail.hidden = true;

    function open(layer, head) {
      Object.assign(state, { layer, head });
      [overview.hidden, detail.hidden] = [true, false];
      render();
      looksAt.chips[state.query].focus();
    }

    function close(event) {
      event.preventDefault();
      [overview.hidden, detail.hidden] = [false, true];
      render();
      thumbnails[state.layer][state.head].button.focus();
    }

    function choose(query, key = query) {
      if (query === state.query && key === state.key) return;
      Object.assign(state, { query, key });
      renderChoice();
    }

    /** The last real token looks back at all the others. */
    function chooseLast() {
      state.query = state.key = Math.max(real[state.row].lastIndexOf(1), 0);
    }

    function pointAtCell(event) {
      const box = canvas.getBoundingClientRect();
      const key = clamp(Math.floor(((event.clientX - box.left) / box.width) * length), 0, length - 1);
      const query = clamp(Math.floor(((event.clientY - box.top) / box.height) * length), 0, length - 1);
      choose(query, key);
    }

    function moveAmongTokens(event) {
      const target = { ArrowLeft: state.query - 1, ArrowRight: state.query + 1, Home: 0, End: length - 1 }[event.key];
      if (target === undefined) return;
      event.preventDefault();
      looksAt.chips[clamp(target, 0, length - 1)].focus();
    }

    function moveCell(event) {
      const step = ARROWS[event.key];
      if (!step) return;
      event.preventDefault();
      const [query, key] = [state.query + step[0], state.key + step[1]];
      choose(clamp(query, 0, length - 1), clamp(key, 0, length - 1));
    }

    // Rendering: everything from the state.

    function placeTabStops() {
      thumbnails.forEach((line, layer) =>
        line.forEach(({ button }, head) => {
          button.tabIndex = layer === state.layer && head === state.head ? 0 : -1;
        }),
      );
    }

    /** The largest shares in words. */
    function inWords(shares) {
      const largest = positions.filter((position) => shares[position] >= 0.005);
      largest.sort((one, other) => shares[other] - shares[one]);
      return largest.slice(0, 3).map((position) => `${label(position)} ${percent(shares[position])}`).join(", ") || "nothing";
    }

    function renderLine({ chips }, chosen, shares, isVisible) {
      chips.forEach((chip, position) => {
        const [text, number] = chip.children;
        const empty = shares[position] === 0 && !isVisible(position);
        chip.classList.toggle("ob-chosen", position === chosen);
        chip.classList.toggle("ob-padding", !isReal(position));
        text.textContent = label(position);
        number.textContent = empty ? "–" : percent(shares[position]);
        number.removeAttribute("style");
        if (!empty) paint(number, shares[position]);
      });
    }

    function renderChoice() {
      const { query, key } = state;
      const forward = positions.map((position) => share(query, position));
      const backward = positions.map((position) => share(position, key));
      renderLine(looksAt, query, forward, (position) => position <= query);
      renderLine(lookedAtBy, key, backward, (position) => position >= key);
      looksAt.title.replaceChildren("where ", element("b", {}, label(query)), " looks");
      lookedAtBy.title.replaceChildren("who looks at ", element("b", {}, label(key)));
      looksAt.chips.forEach((chip, position) => {
        chip.tabIndex = position === query ? 0 : -1;
        chip.setAttribute("aria-selected", position === query);
      });
      labels.rows.forEach((one, position) => one.classList.toggle("ob-chosen", position === query));
      labels.columns.forEach((one, position) => one.classList.toggle("ob-chosen", position === key));
      queryMark.style.top = `calc(${query} * var(--cell))`;
      keyMark.style.left = `calc(${key} * var(--cell))`;
      const name = (position) => `${label(position)} (position ${position}${isReal(position) ? "" : ", padding"})`;
      readout.textContent =
        query === key
          ? `${name(query)} looks at ${inWords(forward)}. Looked at by ${inWords(backward)}.`
          : `${name(query)} looks at ${name(key)}: ${percent(share(query, key), 1)}.`;
    }

    function render() {
      ramp = isDark() ? RAMP.dark : RAMP.light;
      scaleBar.style.background = `linear-gradient(to right, ${ramp.map((stop) => `rgb(${stop})`)})`;
      placeTabStops();
      if (detail.hidden) {
        thumbnails.forEach((line, layer) => line.forEach((one, head) => drawMap(one.canvas, layer, head, 264)));
        return;
      }
      drawMap(canvas, state.layer, state.head, 1024);
      layerChoice.update();
      headChoice.update();
      detailTitle.textContent = headName(state.layer, state.head);
      map.setAttribute("aria-label", `${headName(state.layer, state.head)}; arrow keys move the cell`);
      for (const list of [labels.rows, labels.columns]) {
        list.forEach((one, position) => {
          one.textContent = one.title = label(position);
        });
      }
      renderChoice();
    }

    chooseLast();
    stage.replaceChildren(bar, overview, detail);
    render();
    // A notebook takes single keys as its commands: B for a new cell, D twice to delete one.
    stage.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
    const followTheme = () => root.isConnected && isDark() !== (ramp === RAMP.dark) && render();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", followTheme);
    const themes = new MutationObserver(followTheme);
    for (const page of [document.documentElement, document.body]) themes.observe(page, { attributes: true });
  }

  // Most pages run the script where it stands. VS Code runs it elsewhere: there it builds what is not built yet.
  const own = document.currentScript?.closest(".optbook-view");
  for (const root of own ? [own] : document.querySelectorAll(".optbook-view:has(.ob-fallback)")) build(root);
})();
