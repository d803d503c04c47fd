// Read-outs on charts, and showing or hiding runs. The page is complete without it.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    return parent.appendChild(made);
  };
  const words = value => {
    const size = Math.abs(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return size >= 1e4 ? Math.round(value).toLocaleString("en")
      : size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const numbers = text => text.match(/-?\d+(\.\d+)?/g).map(Number);

  // The places of a line's points are those of its path: "M x y L x y ...".
  const read = figure => {
    const block = figure.querySelector('script[type="application/json"]');
    const data = JSON.parse(block.textContent);
    const paths = [...figure.querySelectorAll("svg path.line")];
    data.lines.forEach((line, k) => {
      const places = numbers(paths[k].getAttribute("d"));
      line.px = places.filter((_, i) => i % 2 === 0);
      line.py = places.filter((_, i) => i % 2 === 1);
    });
    return data;
  };

  const nearest = (places, x) => {
    let best = 0;
    places.forEach((place, k) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = k; });
    return best;
  };

  const listen = figure => {
    const svg = figure.querySelector("svg");
    let data = null, layer = null, box = null;
    const clear = () => { layer?.remove(); box?.remove(); layer = box = null; };
    const show = event => {
      data ??= read(figure);
      clear();
      const area = svg.getBoundingClientRect(), scale = 400 / area.width;
      const x = (event.clientX - area.left) * scale;
      const shown = data.lines.filter(
        line => line.px.length && (line.run === null || !document.body.classList.contains("hide-" + line.run)));
      if (!shown.length || x < 40 || x > 396) return;
      const lead = shown.reduce((a, b) =>
        Math.abs(a.px[nearest(a.px, x)] - x) <= Math.abs(b.px[nearest(b.px, x)] - x) ? a : b);
      const at = nearest(lead.px, x), place = lead.px[at];
      layer = make("g", {}, svg);
      make("line", { class: "rule", x1: place, x2: place, y1: 12, y2: 184 }, layer);
      box = document.createElement("div");
      box.className = "read-out";
      box.append(data.x + " " + words(lead.x[at]));
      for (const line of shown) {
        const k = nearest(line.px, place);
        if (Math.abs(line.px[k] - place) > 12) continue;
        make("circle", { class: "spot c" + line.colour, cx: line.px[k], cy: line.py[k], r: 4 }, layer);
        const row = document.createElement("div"), swatch = document.createElement("i");
        swatch.className = "swatch c" + line.colour;
        const value = document.createElement("b");
        value.textContent = words(line.y[k]);
        row.append(swatch, value, " " + line.name);
        box.append(row);
      }
      figure.append(box);
      const room = figure.clientWidth - box.offsetWidth, left = place / scale;
      box.style.left = Math.max(0, Math.min(room, left > figure.clientWidth / 2 ? left - box.offsetWidth - 12 : left + 12)) + "px";
      box.style.top = svg.offsetTop + 8 + "px";
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", clear);
  };
  for (const block of document.querySelectorAll('figure > script[type="application/json"]')) listen(block.parentElement);

  for (const button of document.querySelectorAll("button.run-toggle")) {
    button.addEventListener("click", () => {
      const hidden = document.body.classList.toggle("hide-" + button.dataset.run);
      button.setAttribute("aria-pressed", String(!hidden));
    });
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
})();
