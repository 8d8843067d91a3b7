"""What the page of a comparison adds to the style of a run's."""

from adabatch.report import style
from adabatch.verdict.page import pens

# Of what lies in a chart; --pen is the arm's.
_DRAWING = """svg .line { stroke: var(--pen); fill: none; stroke-linejoin: round; }
svg .band { fill: var(--pen); opacity: .15; }
svg .faint { opacity: .75; }
svg .dot { fill: var(--pen); stroke: var(--paper); stroke-width: 1; }
svg .seed { fill: var(--pen); opacity: .4; }
svg .through { fill: none; stroke: var(--quiet); stroke-width: 1.3; }
svg .margin { fill: var(--quiet); opacity: .12; }
svg .name { fill: var(--quiet); }
svg .label { fill: var(--ink); }
"""

CSS = f"""{style.CSS}
{pens.css()}
body {{ max-width: 1180px; }}
.verdict {{ font-size: 1.45rem; line-height: 1.35; font-weight: 400; margin: .3rem 0 .8rem; max-width: 46em;
  text-wrap: pretty; }}
.verdict b {{ font-weight: 700; }}
.verdict small {{ display: block; font-size: 1rem; color: var(--quiet); margin-top: .35rem; }}
.meta {{ color: var(--quiet); font-size: .9rem; max-width: none; }}
{_DRAWING}
svg .part {{ stroke: var(--paper); stroke-width: 1; }}
svg.key {{ width: 34px; height: 14px; }}
svg.key.chip {{ width: 13px; margin: 0; }}
svg.small {{ display: none; }}
.first {{ display: grid; grid-template-columns: minmax(0, 2.4fr) minmax(15rem, 1fr); gap: 1rem 2.4rem;
  align-items: center; }}
.lead {{ max-width: 52em; margin-bottom: 1rem; }}
.first figcaption {{ font-size: .95rem; }}
.first figcaption p {{ margin: .7rem 0; }}
.first figcaption p:first-child {{ color: var(--ink); font-size: 1.05rem; }}
.legend {{ line-height: 1.45; }}
.arm {{ white-space: nowrap; }}
table.arms {{ font-size: .9rem; }}
table.arms th {{ vertical-align: bottom; white-space: normal; }}
table.arms td {{ white-space: nowrap; }}
table.arms small {{ display: block; color: var(--quiet); font-weight: 400; font-size: .85em; }}
table.arms tr.group th {{ color: var(--ink); font-weight: 400; padding-top: .9rem; }}
ul.notes {{ padding-left: 1.1rem; margin: .4rem 0; }}
ul.notes li {{ margin: .25rem 0; max-width: 85ch; }}
dl.terms {{ margin: .6rem 0; font-size: .9rem; color: var(--quiet); max-width: 95ch; }}
dl.terms dt {{ float: left; clear: left; font-weight: 600; margin-right: .5em; }}
dl.terms dd {{ margin: 0 0 .25rem; }}
@media (prefers-color-scheme: dark) {{ {pens.css(dark=True)} svg .band {{ opacity: .2; }} }}
@media (max-width: 640px) {{
  svg.large {{ display: none; }}
  svg.small {{ display: block; }}
  .first {{ grid-template-columns: 1fr; }}
  table.arms :is(td, th):first-child {{ position: sticky; left: 0; background: var(--paper); }}
  .verdict {{ font-size: 1.2rem; }}
  body {{ padding-left: .8rem; padding-right: .8rem; }}
}}
@media print {{
  {pens.css()}
  .verdict {{ font-size: 13pt; }}
  .first {{ grid-template-columns: 1fr; }}
  .first svg.large {{ max-width: 145mm; }}
  table.arms {{ font-size: 7pt; }}
  table.arms th, table.arms td {{ padding-right: .35rem; }}
  svg.key {{ width: 24px; }}
}}
"""

# Of a picture that stands alone, as in a README: it brings what it takes of the page's style.
PICTURE = f"""
svg {{ --ink: #1c1f24; --quiet: #5a616b; --rule: #d9dde3; --paper: #fff; }}
text {{ fill: var(--quiet);
  font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
svg .grid {{ stroke: var(--rule); }}
svg .axis {{ stroke: var(--quiet); }}
{_DRAWING}
{pens.css()}
@media (prefers-color-scheme: dark) {{
  svg {{ --ink: #e6e9ee; --quiet: #a3acb9; --rule: #343b46; --paper: #15181d; }}
  {pens.css(dark=True)}
}}
"""
