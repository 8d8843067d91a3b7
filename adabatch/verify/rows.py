"""Rows and summaries of two runs that should be the same run."""

import math

from adabatch import runs
from adabatch.verify.processes import Made


def unlike_rows(ours: Made, theirs: Made) -> str | None:
    """The first field of a row or of the summary that is not measured and differs."""
    one, other = (runs.read_rows(made.folder) for made in (ours, theirs))
    if len(one) != len(other):
        return f"metrics.jsonl has {len(other)} rows instead of {len(one)}"
    for number, (a, b) in enumerate(zip(one, other)):
        for key in a.keys() | b.keys():
            if key not in runs.MEASURED and not same(a.get(key), b.get(key)):
                return f"row {number} of metrics.jsonl differs in {key}: {b.get(key)} instead of {a.get(key)}"
    one, other = (runs.read_json(made.folder / "summary.json") for made in (ours, theirs))
    skipped = (*runs.MEASURED, "overrides")  # which say where it was watched
    found = [k for k in one if k not in skipped and not same(unmeasured(one[k]), unmeasured(other.get(k)))]
    return f"summary.json differs in {', '.join(found)}" if found else None


def unmeasured(value):
    if isinstance(value, dict):
        return {k: unmeasured(v) for k, v in value.items() if k not in runs.MEASURED}
    return [unmeasured(v) for v in value] if isinstance(value, list) else value


def same(a, b) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
