"""The page's style sheet: light, dark and paper; one column on a telephone."""

from adabatch.report.series import BLUE, GREEN, ORANGE, PURPLE

# On a dark ground the same hues, lighter: at least 4.5 : 1 against it.
DARK = {BLUE: "#5cb3e6", ORANGE: "#ff8a3d", GREEN: "#2fc79b", PURPLE: "#e39bc0"}
_DARK_LINES = "".join(
    f'[stroke="{light}"]{{stroke:{dark}}}[fill="{light}"]:not(rect){{fill:{dark}}}'
    for light, dark in DARK.items()
)

CSS = f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1c1f24; --quiet: #5a616b; --rule: #d9dde3;
  --soft: #f4f6f8; --good: #006b4f; --bad: #a63a00; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 1120px; background: var(--paper);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 .2rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .5rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--rule); }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .3rem; }}
p {{ margin: .4rem 0; max-width: 75ch; }}
.quiet, figcaption {{ color: var(--quiet); font-size: .9rem; }}
.state {{ display: inline-block; padding: .1rem .6rem; border-radius: 1rem;
  border: 1.5px solid currentColor;
  font-weight: 600; font-size: .9rem; color: var(--bad); }}
.state.finished {{ color: var(--good); }}
.state.running, .state.submitted {{ color: var(--quiet); }}
.error {{ border-left: 4px solid var(--bad); background: var(--soft); padding: .6rem .9rem;
  white-space: pre-wrap; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: .6rem;
  margin: 1rem 0; }}
.cards div {{ background: var(--soft); border-radius: 6px; padding: .55rem .75rem; margin: 0; }}
.cards dt {{ color: var(--quiet); font-size: .82rem; }}
.cards dd {{ margin: 0; font-size: 1.25rem; font-weight: 600; line-height: 1.25; }}
.cards .long dd {{ font-size: .95rem; }}
.cards small {{ display: block; font-size: .8rem; font-weight: 400; color: var(--quiet); }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: 1.2rem 1.6rem; }}
figure {{ margin: 0; break-inside: avoid; }}
figure h3 {{ margin: 0 0 .2rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ fill: var(--quiet);
  font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
svg .grid {{ stroke: var(--rule); stroke-width: 1; }}
svg .axis {{ stroke: var(--quiet); stroke-width: 1.2; }}
svg .mark {{ stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 4 4; }}
svg.bar {{ height: 30px; border-radius: 4px; margin: .5rem 0; }}
svg.key {{ display: inline-block; width: 26px; height: 12px; vertical-align: middle; }}
.legend {{ font-size: .85rem; margin: 0 0 .2rem; }}
.legend span {{ display: inline-block; margin-right: 1rem; }}
.chip {{ display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }}
th, td {{ text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }}
th {{ font-weight: 600; color: var(--quiet); }}
.n {{ text-align: right; white-space: nowrap; }}
tfoot td {{ font-weight: 600; border-bottom: 0; }}
pre, code {{ font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
pre {{ background: var(--soft); border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0;
  white-space: pre-wrap; }}
details {{ margin: .6rem 0; }}
summary {{ cursor: pointer; font-weight: 600; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #15181d; --ink: #e6e9ee; --quiet: #a3acb9; --rule: #343b46; --soft: #1f242c;
    --good: #2fc79b; --bad: #ff8a3d; }}
  {_DARK_LINES}
}}
@media (max-width: 560px) {{ th, td {{ padding-right: .55rem; font-size: .84rem; }} }}
@media print {{
  :root {{ color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --rule: #bbb; --soft: #f4f4f4; }}
  body {{ max-width: none; padding: 0; font-size: 10.5pt; }}
  .plots {{ grid-template-columns: 1fr 1fr; }}
  h2, h3, summary {{ break-after: avoid; }}
  tr {{ break-inside: avoid; }}
}}
"""
