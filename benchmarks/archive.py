"""Small copies of finished runs, for docs/runs: what tables and verdicts read, without the machine's paths.

python benchmarks/archive.py OUT.tar.xz FOLDER...      each a run's folder, or a comparison's with its runs

Of metrics.jsonl every evaluation stays, and of the training rows the first after each change of the batch and
some 200 evenly spaced ones; checkpoints, weights, logs and reports stay behind. `tar -xJf FILE -C outputs`
puts them back: the command that made them then takes them as finished and runs what is missing.
"""

import io
import json
import re
import sys
import tarfile
from pathlib import Path

import yaml

from adabatch import runs

ROWS = 200  # training rows of a run
ABSOLUTE = re.compile(r"""(?:^|[\s"'=])(/[\w.-]+/[\w./-]*)""")


def thinned(rows: list[dict]) -> list[dict]:
    training = [i for i, row in enumerate(rows) if row["event"] == "train"]
    every = max(1, len(training) // ROWS)
    kept = {*training[::every], *training[-1:]}
    for before, now in zip(training, training[1:], strict=False):
        if rows[before]["batch_size"] != rows[now]["batch_size"]:
            kept.add(now)
    return [row for i, row in enumerate(rows) if i in kept or row["event"] != "train"]


def files(folder: Path) -> dict[str, str]:
    """The texts that are kept of a run, by name."""
    run = runs.Run(folder)
    if run.state != "finished":
        sys.exit(f"{folder} is {run.state or 'no run'}: only finished runs are kept")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if config["dataset"].get("root"):
        config["dataset"]["root"] = "data"
    overrides = yaml.safe_load((folder / "overrides.yaml").read_text())
    overrides["overrides"] = [o for o in overrides["overrides"] if not o.startswith("dataset.root=")]
    environment = {k: v for k, v in run.environment.items() if k not in ("host", "cwd", "executable", "argv")}
    status = {k: v for k, v in run.status.items() if k != "owner"}
    return {
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        "overrides.yaml": yaml.safe_dump(overrides, sort_keys=False),
        "environment.json": json.dumps(environment, indent=2),
        "status.json": json.dumps(status, indent=2),
        "summary.json": json.dumps(run.summary, indent=2),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in thinned(run.rows)),
    }


def listed(folders: list[Path]) -> dict[str, str]:
    """{path below outputs/: text} of all runs in the folders that are finished."""
    found = {}
    for folder in map(Path.resolve, folders):
        inner = sorted(child.parent for child in folder.glob("*/overrides.yaml"))
        if (folder / "compare.yaml").is_file():
            found[f"{folder.name}/compare.yaml"] = (folder / "compare.yaml").read_text()
            inner = [child for child in inner if runs.Run(child).state == "finished"]
        for run in inner or [folder]:
            place = run.relative_to(folder.parent).as_posix()
            found |= {f"{place}/{name}": text for name, text in files(run).items()}
    return found


def main() -> None:
    out, found = sys.argv[1], listed([Path(folder) for folder in sys.argv[2:]])
    for name, text in found.items():
        if paths := ABSOLUTE.findall(text):
            sys.exit(f"{name} names a path of this machine: {paths[0]}")
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for name, text in sorted(found.items()):
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    count = sum(name.endswith("summary.json") for name in found)
    print(f"{count} runs, {Path(out).stat().st_size:,} bytes in {out}")


if __name__ == "__main__":
    main()
