"""The page's style sheet: one column on a telephone, paper and dark mode included."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #5c626b; --line: #d9dce1; --paper: #ffffff;
  --band: #f4f5f7; --good: #0b6b3a; --bad: #b3261e; --mark: #0b57d0; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ink: #e6e7e9; --dim: #a9afb8; --line: #3a3f47; --paper: #16181b;
  --band: #1f2226; --good: #7fd8a4; --bad: #ff9a90; --mark: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem;
  background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p.lead { color: var(--dim); margin: 0 0 1rem; max-width: 62rem; }
ul.verdicts { list-style: none; margin: 0 0 1.2rem; padding: 0; max-width: 62rem; }
ul.verdicts li { border-left: 4px solid var(--line); padding: .15rem 0 .15rem .8rem;
  margin: .45rem 0; }
ul.verdicts li.better { border-color: var(--good); }
ul.verdicts li.worse { border-color: var(--bad); }
ul.verdicts li.matches { border-color: var(--mark); }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
table.main { border-top: 1px solid var(--line); }
th, td { padding: .4rem .55rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { background: var(--band); font-weight: 600; vertical-align: bottom;
  overflow-wrap: normal; }
tbody th { font-weight: 600; }
@media print, (min-width: 60rem) { .main thead th:first-child { min-width: 16em; } }
.n { text-align: right; }
.v { white-space: nowrap; } .words .v { white-space: normal; }
.i { display: block; color: var(--dim); font-size: .86em; }
.i b { font-weight: 400; white-space: nowrap; }
tr.base > * { color: var(--dim); } tr.base th { font-weight: 400; font-style: italic; }
tr.failed td, tr.failed th, .failed > h4 { color: var(--bad); }
tr.section th { background: var(--band); color: var(--ink); }
.none { color: var(--dim); white-space: nowrap; }
ul.notes { margin: .9rem 0 0; padding-left: 1.1rem; color: var(--dim); font-size: .86rem;
  max-width: 70rem; overflow-wrap: anywhere; }
.cards { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem .8rem;
  min-width: 0; }
.card h4 { margin: 0 0 .4rem; font-size: .95rem; overflow-wrap: anywhere; }
.card dl { grid-template-columns: minmax(42%, 1fr) auto; column-gap: .7rem; }
.card dd { text-align: right; } .card .v { white-space: normal; }
.card dt.part { padding-left: .9rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem;
  margin: 0; font-size: .86rem; font-variant-numeric: tabular-nums; }
dt { color: var(--dim); min-width: 0; } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.figures { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure .sheet { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
/* What is drawn in black names no colour of its own. */
figure svg { display: block; width: 100%; height: auto; fill: var(--x000000); }
figcaption { color: var(--dim); font-size: .86rem; margin-top: .4rem; }
details { border: 1px solid var(--line); border-radius: 8px; padding: .45rem .9rem;
  margin: .5rem 0; }
summary { cursor: pointer; }
summary b { color: var(--mark); } summary span { color: var(--dim); font-size: .9rem; }
details.failed > summary b { color: var(--bad); }
details h4 { margin: 1rem 0 .4rem; font-size: .92rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .86rem; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.check-failed { color: var(--bad); }
/* Narrow: a row becomes a card of its own, a cell a line with its heading before it. */
@media screen and (max-width: 56rem) {
  table.rows, .rows tr, .rows th, .rows td { display: block; }
  .rows tbody { display: grid; gap: .6rem;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
  .rows thead { display: none; }
  .rows tr { border: 1px solid var(--line); border-radius: 8px; padding: .4rem .7rem;
    min-width: 0; }
  .rows tr.section { border: 0; padding: 0; margin: .4rem 0 -.3rem; grid-column: 1 / -1; }
  .rows tr.section th { padding: .4rem .7rem; border-radius: 8px; }
  table.main { border: 0; }
  .rows th, .rows td { border: 0; padding: .15rem 0; }
  .rows td { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
  .rows td::before { content: attr(data-label); color: var(--dim); text-align: left; }
  .rows td > span { flex: none; max-width: 62%; }
  .rows td.nothing { display: none; } }
@media screen and (max-width: 40rem) {
  figure .sheet { padding: .2rem; }
  dl:not(.short) { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dl:not(.short) dd { margin-bottom: .5rem; } }
@page { size: A4; margin: 12mm; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  table { font-size: 8.5pt; } .i { font-size: .93em; } code { font-size: 1em; }
  .card dl, ul.notes, figcaption, details { font-size: 8.5pt; }
  .cards { grid-template-columns: 1fr 1fr; } .figures { grid-template-columns: 1fr 1fr; }
  details { padding: .15rem .6rem; margin: .25rem 0; } figure .sheet { padding: .2rem; }
  tr, .card, li, h2, h3 { break-inside: avoid; } h2, h3, .lead { break-after: avoid; }
  .cards, .figures { padding-right: 1px; } /* or the last border is cut at the edge of the sheet */
}
"""
