"""The script of the page: values under the pointer, and smoothing. Without it all else is there.

It reads what `spear/report/line_chart.py` writes: the points of each line, the scales of each
picture; its margins are those of `spear/report/drawing.py`.
"""

from spear.report.drawing import BASE, LEFT, RIGHT, TOP, WIDTH

_TEMPLATE = """
"use strict";
(() => {
  const left = @LEFT, right = @WIDTH - @RIGHT, top_ = @TOP, base = @BASE, width = @WIDTH;
  document.documentElement.classList.add("scripted");
  const tip = document.getElementById("tip");

  // A picture: its scales, and its lines with their points in units of the picture.
  function read(svg) {
    const [x0, x1] = JSON.parse(svg.dataset.x);
    const [y0, y1, isLog] = JSON.parse(svg.dataset.y);
    const scale = isLog ? Math.log : (value) => value;
    const placeX = (step) => left + (step - x0) / (x1 - x0) * (right - left);
    const placeY = (value) =>
      base - (scale(value) - scale(y0)) / (scale(y1) - scale(y0)) * (base - top_);
    const lines = [...svg.querySelectorAll("path[data-points]")].map((path) => ({
      path, label: path.dataset.label,
      points: JSON.parse(path.dataset.points).map(([step, value]) => ({
        step, value, x: placeX(step), y: value === null ? null : placeY(value) })),
    }));
    return { svg, lines, cursor: svg.querySelector(".cursor") };
  }

  function nearest(points, x) {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle].x < x) low = middle; else high = middle;
    }
    return Math.abs(points[low].x - x) <= Math.abs(points[high].x - x) ? points[low] : points[high];
  }

  const words = (value) => value === null ? "not finite" : String(Number(value.toPrecision(4)));

  function show(chart, event) {
    const box = chart.svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * width;
    const found = chart.lines.map((line) => ({ line, point: nearest(line.points, x) }));
    const distance = ({ point }) => Math.abs(point.x - x);
    const { point } = found.reduce((a, b) => distance(b) < distance(a) ? b : a);
    const rows = found.map(({ line, point: own }) => line.label + "  " + words(own.value)
      + (own.step === point.step ? "" : "  (at " + own.step + ")"));
    tip.textContent = [chart.svg.dataset.name + " " + point.step, ...rows].join("\\n");
    chart.cursor.setAttribute("x1", point.x);
    chart.cursor.setAttribute("x2", point.x);
    chart.cursor.style.visibility = tip.style.visibility = "visible";
    const place = box.left + point.x / width * box.width;
    const isWide = place + 14 + tip.offsetWidth > innerWidth;
    const beside = isWide ? place - 14 - tip.offsetWidth : place + 14;
    tip.style.left = Math.max(4, beside) + scrollX + "px";
    tip.style.top = box.top + scrollY + 12 + "px";
  }

  function hide(chart) {
    chart.cursor.style.visibility = tip.style.visibility = "hidden";
  }

  // An exponential average along the axis as drawn, corrected for its beginning at nothing.
  function averaged(points, keep) {
    let sum = 0, weight = 0, pen = "M", path = "";
    for (const { x, y } of points) {
      if (y === null) { pen = "M"; continue; }
      sum = keep * sum + (1 - keep) * y;
      weight = keep * weight + (1 - keep);
      path += pen + x.toFixed(1) + "," + (sum / weight).toFixed(1);
      pen = "L";
    }
    return path;
  }

  function smooth(chart, keep) {
    for (const line of chart.lines.filter(({ path }) => path.classList.contains("train"))) {
      if (line.smooth) line.smooth.remove();
      line.smooth = null;
      line.path.classList.toggle("faint", keep > 0);
      if (keep === 0) continue;
      line.smooth = line.path.cloneNode(false);
      line.smooth.classList.remove("faint");
      for (const name of ["data-points", "data-label"]) line.smooth.removeAttribute(name);
      line.smooth.setAttribute("d", averaged(line.points, keep));
      line.path.after(line.smooth);
    }
  }

  const charts = [...document.querySelectorAll("svg[data-x]")].map(read);
  for (const chart of charts) {
    chart.svg.addEventListener("pointermove", (event) => show(chart, event));
    chart.svg.addEventListener("pointerdown", (event) => show(chart, event));
    chart.svg.addEventListener("pointerleave", () => hide(chart));
  }
  const slider = document.getElementById("smoothing");
  slider.addEventListener("input", () => {
    for (const chart of charts) smooth(chart, Number(slider.value));
  });
})();
"""

_NUMBERS = {"@LEFT": LEFT, "@RIGHT": RIGHT, "@TOP": TOP, "@BASE": BASE, "@WIDTH": WIDTH}


def page_script() -> str:
    """Returns the script, with the margins of the pictures in their places."""
    text = _TEMPLATE
    for name, number in _NUMBERS.items():
        text = text.replace(name, str(number))
    return text.strip()
