"use strict";
(async () => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const about = read("about");
  for (const element of document.querySelectorAll(".scripted")) element.hidden = false;

  // tables: a heading sorts its column
  for (const table of document.querySelectorAll("table")) {
    const headings = [...table.querySelectorAll("th")];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const order = (first, second) => {
          const [a, b] = [key(first), key(second)];
          if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // empty cells last, either way
          const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
          const sign = numbers ? Number(a) - Number(b) : a.localeCompare(b);
          return up ? sign : -sign;
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
      });
    });
  }

  const root = document.documentElement;
  const roots = about.roots;
  await Bokeh.embed.embed_items({ page: read("document") }, [{ docid: "page", roots, root_ids: Object.keys(roots) }]);
  const models = Bokeh.documents[0];
  const named = (name) => models.get_model_by_name(name);

  // colours of axes and texts come from the style sheet and are read when a figure is painted
  const repaint = () => {
    const ink = getComputedStyle(root).getPropertyValue("--ink");
    for (const model of models.all_models) {
      if (model.type === "Legend") model.label_text_color = ink;
      if (model.type === "ColorBar") model.major_label_text_color = ink;
      if (model.type === "Figure") model.change.emit();
    }
  };
  repaint();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", repaint);
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    repaint();
  });

  const shown = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "not measured");

  // the cursor: a pointer moves it in every figure, and so does the slider
  const cursor = named("cursor");
  const slider = document.getElementById("step");
  if (cursor === null) document.getElementById("cursor").hidden = true;
  else {
    const range = named("steps");
    [slider.min, slider.max] = [Math.ceil(range.start), Math.floor(range.end)];
    slider.value = cursor.location;
    const values = (step) => {
      document.getElementById("at").textContent = step;
      for (const [number, lines] of Object.entries(about.lines)) {
        const cells = lines.map(({ source, name }) => {
          const { x, y } = named(source).data;
          let low = 0;
          let high = x.length;
          while (low < high) {
            const middle = (low + high) >> 1;
            if (x[middle] <= step) low = middle + 1;
            else high = middle;
          }
          const row = document.createElement("div");
          for (const [tag, text] of [["dt", name], ["dd", low ? shown(y[low - 1]) : "-"]]) {
            row.appendChild(document.createElement(tag)).textContent = text;
          }
          return row;
        });
        document.getElementById(`readout-${number}`).replaceChildren(...cells);
      }
    };
    slider.addEventListener("input", () => { cursor.location = Number(slider.value); });
    cursor.properties.location.change.connect(() => {
      if (!Number.isFinite(cursor.location)) {
        cursor.location = Number(slider.value); // the pointer has left: stay
        return;
      }
      slider.value = cursor.location;
      values(Number(slider.value));
    });
    values(Number(slider.value));
  }

  // maps: a choice exchanges the image, the labels of its colours and its definition
  for (const [number, maps] of Object.entries(about.maps)) {
    const choice = document.getElementById(`choose-${number}`);
    const choose = () => {
      const map = maps.maps[choice.value];
      const source = named(`maps-${number}`);
      source.data = { ...source.data, shown: source.data[`m${choice.value}`] };
      named(`bar-${number}`).major_label_overrides = new Map(maps.ticks.map((tick, at) => [tick, map.labels[at]]));
      document.getElementById(`about-${number}`).textContent = map.definition + (map.log ? " (logarithmic)" : "");
    };
    choice.addEventListener("change", choose);
    choose();
    const plot = named(`map-${number}`);
    plot.on_event("mousemove", (event) => {
      const levels = named(`maps-${number}`).data[`m${choice.value}`][0];
      const [rows, columns] = levels.shape;
      const row = Math.floor(((event.y - maps.bottom) / maps.height) * rows);
      const column = Math.floor(((event.x - maps.left) / maps.width) * columns);
      if (row < 0 || row >= rows || column < 0 || column >= columns) return;
      const map = maps.maps[choice.value];
      const share = (levels[row * columns + column] - 1) / 254;
      const value = map.log
        ? Math.exp(Math.log(map.low) + share * (Math.log(map.high) - Math.log(map.low)))
        : map.low + share * (map.high - map.low);
      const place = `${maps.x} ${Math.round(event.x)}, ${maps.y} ${Math.round(event.y)}`;
      document.getElementById(`value-${number}`).textContent =
        `${place}: ${map.name} ${share < 0 ? "not measured" : `about ${Number(value.toPrecision(3))}`}`;
    });
  }

  // a report that is being rewritten loads itself anew, unless somebody is reading
  const seconds = Number(document.body.dataset.reload);
  if (seconds) {
    let touched = Date.now();
    for (const kind of ["pointermove", "keydown", "wheel", "touchstart"]) {
      addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
    }
    setInterval(() => { if (Date.now() - touched > 1000 * seconds) location.reload(); }, 1000 * seconds);
  }
  root.dataset.ready = "yes";
})();
