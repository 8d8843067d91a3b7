"""Runs a benchmark that prints its figures, and keeps what it printed as JSON.

python benchmarks/kept.py OUT.json benchmarks/measuring.py [options of that one]
"""

import json
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    out, command = Path(sys.argv[1]), sys.argv[2:]
    began, lines = time.time(), []
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    if process.returncode:
        sys.exit(process.returncode)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = {"command": command, "seconds": time.time() - began, "printed": lines}
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
