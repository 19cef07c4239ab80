"""The looks of the page: light and dark, wide and narrow, and on paper.

The colours of curves are told apart by people with any kind of colour vision, and the looks of
lines differ, too: training is a thin line, validation a thicker one with dots, a reference dotted.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1a1f27; --soft: #5a6472; --line: #d9dde3;
  --train: #0b6bcb; --valid: #c2410c; --reference: #6b7280; --skip: #b4009e; --restart: #8a6d00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #11151b; --card: #1a2029; --ink: #e7eaee; --soft: #a3adba; --line: #323b47;
    --train: #5aaeff; --valid: #ff9b54; --reference: #9aa4b2; --skip: #ff77e6; --restart: #e2c044;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.5rem clamp(0.9rem, 3vw, 2.5rem) 4rem; max-width: 1360px;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.2rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.3rem; margin: 2.8rem 0 0.8rem; padding-top: 1rem; overflow-wrap: anywhere;
  border-top: 1px solid var(--line);
}
h2 small { color: var(--soft); font-weight: 400; margin-left: 0.5em; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.6rem; }
.soft, .remark { color: var(--soft); }
.remark { margin: 0.4rem 0; max-width: 75ch; font-size: 0.9rem; overflow-wrap: anywhere; }
.problem { border-left: 4px solid var(--valid); padding: 0.3rem 0.8rem; background: var(--card); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.88em; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 0.9rem 0; }
a { color: var(--train); text-underline-offset: 0.2em; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 0.7rem; }
.cards div { background: var(--card); border-radius: 8px; padding: 0.6rem 0.9rem; }
.cards strong {
  display: block; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums;
}
.cards span { color: var(--soft); font-size: 0.82rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; margin: 0.6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.28rem 1.1rem 0.28rem 0; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { max-width: 44rem; overflow-wrap: break-word; }
tbody tr { border-top: 1px solid var(--line); }
td:not(.right) { min-width: 6.5rem; }
td:first-child { white-space: nowrap; }
.sums tbody tr:last-child td { font-weight: 600; }
.right { text-align: right; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); }
.charts { gap: 1rem; }
.chart {
  margin: 0; padding: 0.7rem 0.6rem 0.3rem; background: var(--card); border-radius: 8px;
  display: flex; flex-direction: column; justify-content: space-between;
}
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 0.6rem; padding: 0 0.4rem 0.3rem; }
.entry { white-space: nowrap; }
.unit, .legend { color: var(--soft); font-size: 0.82rem; line-height: 1.8; }
.legend { margin-left: auto; display: flex; flex-wrap: wrap; gap: 0 0.9rem; }
.key {
  display: inline-block; width: 1.3em; border-top: 2px solid; margin-right: 0.4em;
  vertical-align: middle;
}
.key.train { border-color: var(--train); }
.key.valid { border-color: var(--valid); border-top-width: 4px; }
.key.reference { border-color: var(--reference); border-top-style: dotted; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke-width: 1.4; stroke-linejoin: round; stroke-linecap: round; }
.line.train { stroke: var(--train); }
.line.valid { stroke: var(--valid); stroke-width: 2.2; }
.line.reference { stroke: var(--reference); stroke-width: 1.8; stroke-dasharray: 1.5 4; }
.line.faint { opacity: 0.28; }
.dot.train { fill: var(--train); }
.dot.valid { fill: var(--valid); }
.dot.reference { fill: var(--reference); }
.bar.train, .cell { fill: var(--train); }
.bar.valid { fill: var(--valid); }
.skip { fill: var(--skip); }
.restart { stroke: var(--restart); stroke-width: 1.5; stroke-dasharray: 6 3; fill: none; }
.cursor { stroke: var(--soft); stroke-width: 1; visibility: hidden; }
details { margin: 0.6rem 0; }
summary { cursor: pointer; padding: 0.2rem 0; font-weight: 600; }
pre {
  background: var(--card); border-radius: 8px; padding: 0.8rem 1rem; overflow: auto;
  max-height: 34rem; line-height: 1.4;
}
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: start; }
.pictures figure { margin: 0; max-width: min(100%, 620px); }
.pictures img { display: block; max-width: 100%; background: #fff; border-radius: 6px; }
#tip {
  position: absolute; z-index: 9; pointer-events: none; visibility: hidden; padding: 0.3rem 0.6rem;
  background: var(--ink); color: var(--paper); border-radius: 6px; font-size: 0.82rem;
  line-height: 1.45; white-space: pre; font-variant-numeric: tabular-nums; left: 0; top: 0;
}
.beside { display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem; align-items: start; }
.beside > * { min-width: 0; max-width: 100%; }
.beside .charts { flex: 1 1 300px; }
.smooth { display: none; align-items: center; gap: 0.6rem; color: var(--soft); }
.scripted .smooth { display: flex; }
.scripted .smooth { margin-top: 1.2rem; }
.smooth input { accent-color: var(--train); width: 9rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.85rem; }
@media print {
  :root {
    --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc;
    --train: #0b5cad; --valid: #b33a08; --reference: #555;
  }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav, .scripted .smooth, details:not([open]) { display: none; }
  .charts { grid-template-columns: repeat(2, 1fr); gap: 0.4cm; }
  .chart, .cards div { border: 1px solid #ccc; break-inside: avoid; }
  .beside .charts { grid-template-columns: 1fr; max-width: 9cm; }
  h2, h3 { break-after: avoid; }
  pre { max-height: none; white-space: pre-wrap; }
  tr { break-inside: avoid; }
  @page { margin: 1.5cm; }
}
""".strip()
