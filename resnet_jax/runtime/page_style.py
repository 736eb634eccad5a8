"""The look of all HTML pages, as one style sheet."""

# Colours for a light screen and for print, then for a dark screen. On both, the figures
# have a white background.
STYLE = """
:root { color-scheme: light; --text: #1d1d1f; --faint: #5f6368; --page: #fff;
  --box: #f5f6f8; --edge: #d8dbe0; --link: #0b57d0; --shown: #00704f; --seen: #8a5a00;
  --not-seen: #5f6368; --bad: #b3261e; --on-badge: #fff }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --text: #e6e6e9; --faint: #a3a7ad; --page: #16171a;
    --box: #212327; --edge: #3b3e44; --link: #8ab4f8; --shown: #4cc79b;
    --seen: #e3b341; --not-seen: #a3a7ad; --bad: #f2867c; --on-badge: #16171a } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; color: var(--text); background: var(--page) }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--edge) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
a { color: var(--link) }
.faint, figcaption { color: var(--faint); font-size: .875rem }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none;
  padding: .6rem .9rem; margin: 1.2rem 0; background: var(--box); border-radius: 8px }
.claims { list-style: none; padding: 0 }
.claims li { display: grid; grid-template-columns: 5.5rem 1fr; gap: 0 .9rem;
  padding: .7rem 0; border-bottom: 1px solid var(--edge) }
.claims li p { margin: 0 }
.badge { align-self: start; border-radius: 99px; padding: .1rem 0; text-align: center;
  font-size: .8rem; font-weight: 600; color: var(--on-badge);
  print-color-adjust: exact }
.badge.shown { background: var(--shown) }
.badge.seen { background: var(--seen) }
.badge.not-seen { background: var(--not-seen) }
.failed { border-left: 4px solid var(--bad); padding: .1rem 0 .1rem 1rem }
.failed h2 { margin-top: .4rem }
.failed h2, .bad { color: var(--bad) }
.failed li { overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem;
  font-size: .875rem }
dt { font-weight: 600 }
dd { margin: 0; color: var(--faint) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--edge); padding: .35rem .9rem;
  text-align: right; white-space: nowrap }
th { font-size: .875rem }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
figure { margin: 1rem 0 }
figure img { display: block; width: 100%; min-width: 36rem; max-width: 900px;
  background: #fff; border: 1px solid var(--edge); border-radius: 8px; padding: .5rem }
figcaption { margin-top: .4rem }
.forest { font-size: 13px; overflow: visible }
.forest text { fill: var(--text); stroke: var(--page); stroke-width: 4;
  paint-order: stroke }
.forest .tick { fill: var(--faint); text-anchor: middle }
.forest line { stroke: var(--edge) }
.forest .zero { stroke: var(--text) }
.forest .margin { stroke: var(--text); stroke-dasharray: 3 3 }
.forest .shown { stroke: var(--shown); fill: var(--shown); stroke-width: 2 }
.forest .seen { stroke: var(--seen); fill: var(--seen); stroke-width: 2 }
.forest .not-seen { stroke: var(--not-seen); fill: var(--not-seen); stroke-width: 2 }
pre { background: var(--box); padding: .8rem; overflow-x: auto; border-radius: 8px;
  font-size: 13px }
summary { cursor: pointer; color: var(--link) }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  .claims li { grid-template-columns: 1fr; gap: .3rem } .badge { width: 5.5rem } }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt } nav, details { display: none }
  figure img { min-width: 0 } figure, .claims li, tr { break-inside: avoid }
  h2, h3 { break-after: avoid } .scroll { overflow: visible } }
"""
