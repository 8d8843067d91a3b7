"""Mean and spread over seeds of finished runs, a row for each set of overrides that differs in more than the
seed.

python benchmarks/table.py outputs/*
"""

import statistics
import sys

from adabatch import runs

FIGURES = (
    ("test error %", "final_test_error", 100, 2),
    ("updates", "steps", 1, 0),
    ("seconds", "train_seconds", 1, 1),
    ("samples/s", "images_per_second", 1, 0),
)


def main() -> None:
    arms: dict[tuple, list] = {}
    for folder in sys.argv[1:]:
        run = runs.Run(folder)
        if run.state == "finished":
            arms.setdefault(tuple(o for o in run.overrides if not o.startswith("seed=")), []).append(
                run.summary
            )
    common = set.intersection(*map(set, arms)) if arms else set()
    print(f"common: {' '.join(sorted(common))}\n\n| arm | n | {' | '.join(name for name, *_ in FIGURES)} |")
    print("|---|---|" + "---|" * len(FIGURES))
    for arm, summaries in sorted(arms.items()):
        cells = []
        for _, key, scale, digits in FIGURES:
            values = [summary[key] * scale for summary in summaries]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
            cells.append(f"{statistics.mean(values):,.{digits}f}{spread}")
        print(f"| {' '.join(o for o in arm if o not in common)} | {len(summaries)} | {' | '.join(cells)} |")
    print("\n± is the standard deviation over seeds.")


if __name__ == "__main__":
    main()
