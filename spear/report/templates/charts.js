"use strict";
// Draws the charts with plotly, each when it comes into view. A chart says what is in it
// (`data-chart`); what depends on the reader is here: light or dark, smoothing, hidden runs.
(() => {
  const runColours = ["#2b7fd4", "#d9691c", "#1f9d78", "#c0499c", "#8065d6", "#a8830a", "#cf4545",
    "#2fa3b8", "#6f8f2f", "#8a6a52"]; // told apart on light and on dark paper
  const widths = { train: 1.2, valid: 2.4, reference: 1.8 };
  const hasPointer = matchMedia("(hover: hover)").matches; // else fingers scroll the page
  const slider = document.getElementById("smoothing");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const colour = (trace) =>
    trace.run === null ? css(trace.role) : runColours[trace.run % runColours.length];
  // Plotly reads names as a little HTML.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

  // An exponential average, of logarithms on a logarithmic axis, corrected for its beginning at 0.
  function smoothed(values, keep, isLog) {
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = keep * sum + (1 - keep) * (isLog ? Math.log(value) : value);
      weight = keep * weight + (1 - keep);
      return isLog ? Math.exp(sum / weight) : sum / weight;
    });
  }

  function curve(trace, name) {
    const isShort = trace.x.length <= 40 && trace.role === "valid";
    const line = { color: colour(trace), width: widths[trace.role] };
    if (trace.role === "reference") line.dash = "dot";
    const isAlone = (value, i, all) => value !== null && all[i - 1] == null && all[i + 1] == null;
    const markers = isShort || trace.y.some(isAlone); // no line leads to a point alone
    return { name, line, x: trace.x, y: trace.y, mode: markers ? "lines+markers" : "lines",
      marker: { color: line.color, size: 5 }, hovertemplate: "%{y:.5g}" };
  }

  function bars(trace, name) {
    const drawn = { name, x: trace.x, y: trace.y, hovertemplate: "%{y:.5g}" };
    const line = { width: 2, color: colour(trace) };
    if (trace.role === "reference")
      return { ...drawn, mode: "markers", marker: { symbol: "line-ew", size: 14, line } };
    const opacity = trace.run !== null && trace.role === "train" ? 0.5 : 1;
    return { ...drawn, type: "bar", opacity, marker: { color: colour(trace) } };
  }

  function heat(trace) {
    return { type: "heatmap", x: trace.x, z: trace.y, colorscale: "Viridis",
      colorbar: { thickness: 10, outlinewidth: 0 },
      hovertemplate: "step %{x}, codebook %{y}: %{z:.4g}<extra></extra>" };
  }

  // Upright lines where a run was started again, triangles at steps that were skipped.
  function marks(role, steps, first, last) {
    const shown = Object.entries(steps).filter(([step]) => first <= step && step <= last);
    const heights = role === "restart" ? [0, 1, null] : [0.03];
    return { x: shown.flatMap(([step]) => heights.map(() => Number(step))), yaxis: "y2",
      y: shown.flatMap(() => heights), text: shown.flatMap(([, text]) => heights.map(() => plain(text))),
      hovertemplate: "%{text}<extra></extra>", mode: role === "restart" ? "lines" : "markers",
      line: { color: css("restart"), width: 1.5, dash: "dash" },
      marker: { color: css("skip"), symbol: "triangle-up", size: 9 } };
  }

  function traces(chart, section) {
    const names = [...section.querySelectorAll("[data-run]")].map((box) => box.parentNode.textContent);
    const hidden = [...section.querySelectorAll("[data-run]:not(:checked)")].map((box) => +box.dataset.run);
    const keep = Number(slider.value);
    const roles = Object.keys(widths); // validation lies over training, of all runs
    const shown = chart.traces.filter((trace) => !hidden.includes(trace.run))
      .sort((a, b) => roles.indexOf(a.role) - roles.indexOf(b.role));
    const found = shown.flatMap((trace) => {
      const name = plain([names[trace.run], trace.label].filter(Boolean).join(" ") || chart.title);
      if (chart.kind !== "lines") return [chart.kind === "bars" ? bars(trace, name) : heat(trace)];
      const drawn = curve(trace, name);
      if (keep === 0 || trace.role !== "train") return [drawn];
      const y = smoothed(trace.y, keep, isLog(chart));
      return [{ ...drawn, opacity: 0.28, hoverinfo: "skip", hovertemplate: undefined }, { ...drawn, y }];
    });
    if (chart.kind !== "lines" || chart.x !== "step") return found;
    const steps = chart.traces.flatMap((trace) => trace.x);
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const all = JSON.parse(section.dataset.marks).filter((_, run) => !hidden.includes(run));
    return [...found, ...all.flatMap((own) => ["restart", "skip"].map(
      (role) => marks(role, own[role], first, last)).filter((trace) => trace.x.length))];
  }

  const values = (chart) => chart.traces.flatMap((trace) => trace.y).filter((value) => value !== null);
  const isLog = (chart) => chart.log && values(chart).every((value) => value > 0);

  function layout(chart) {
    const axis = { gridcolor: css("line"), zerolinecolor: css("line"), automargin: true };
    const isHeat = chart.kind === "heat";
    const x = { ...axis, showgrid: false, title: { text: isHeat ? "step" : chart.x, standoff: 6 } };
    const y = { ...axis, type: isLog(chart) ? "log" : "linear" };
    if (isHeat) Object.assign(y, { autorange: "reversed", showgrid: false });
    else if (Math.max(...values(chart)) < 1) y.exponentformat = "power";
    if (!isHeat && !isLog(chart) && values(chart).every((value) => value >= 0)) y.rangemode = "tozero";
    return { xaxis: x, yaxis: y, yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      showlegend: false, barmode: "group", hovermode: isHeat ? "closest" : "x unified",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      dragmode: hasPointer ? "zoom" : false,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("soft"), activecolor: css("ink") },
      font: { color: css("soft"), size: 11, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: css("paper"), bordercolor: css("line"), font: { color: css("ink") } },
      margin: { l: 46, r: 12, t: 10, b: 38 } };
  }

  const config = { responsive: true, displaylogo: false, displayModeBar: hasPointer && "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const drawn = new Set();
  function draw(place) {
    const chart = JSON.parse(place.dataset.chart);
    drawn.add(place);
    Plotly.react(place, traces(chart, place.closest(".runs")), layout(chart), config);
  }
  const drawAgain = () => drawn.forEach(draw);

  const places = [...document.querySelectorAll("[data-chart]")];
  const watcher = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
    if (isIntersecting && !drawn.has(target)) draw(target);
  }), { rootMargin: "300px" });
  places.forEach((place) => watcher.observe(place));
  slider.addEventListener("input", drawAgain);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);
  addEventListener("beforeprint", () => places.filter((place) => place.offsetParent).forEach(draw));
  for (const box of document.querySelectorAll("[data-run]")) {
    box.nextElementSibling.style.borderColor = runColours[box.dataset.run % runColours.length];
    box.addEventListener("change", drawAgain);
  }
})();
