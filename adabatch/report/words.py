"""Figures as people read them."""

from adabatch.files import number
from adabatch.report.facts import text


def figure(value) -> str:
    """A value of any type for a table's cell."""
    found = number(value)
    return text(value) if found is None else plain(found)


def plain(value: float | None) -> str:
    """ "1,250", "0.05", "3.2e-05"; a dash for None. Integers keep every digit."""
    if value is None:
        return "\u2013"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.5g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.4g}"


def short(value: float | None, digits: int = 4) -> str:
    """As `plain`, with a fraction rounded to so many digits."""
    exact = value is None or value == int(value)
    return plain(value if exact else float(f"{value:.{digits}g}"))


def fixed(seconds: float | None) -> str:
    return "\u2013" if seconds is None else f"{seconds:,.2f}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def duration(seconds: float | None) -> str:
    """ "83.4 s", "12 min 05 s", "3 h 07 min"."""
    if seconds is None or seconds < 0:
        return "\u2013"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"
