"""KellerJordan's airbench94_muon.py, as it is, against `experiment=cifar10_faster`: seconds and accuracy.

    python benchmarks/airbench.py SOURCE.py CIFAR10 [--runs 5] [--out airbench.json] [key=value ...]

SOURCE.py is of github.com/KellerJordan/cifar10-airbench (commit f1c599c), which is executed and not changed;
CIFAR10 is torchvision's root of the data. Each in a process of its own, one after the other: its compiled
network is used again by its runs, as its author has it, after a warm-up that is not counted. Ours are seeds
0, 1, ... of one multirun, in bf16 and compiled; further overrides can be given. Seconds are those of training
without evaluations, theirs with the measuring of its whitening layer, which is set-up in ours; accuracies are
of six views on the test set.

--dry runs both on a CPU, on few pictures and in float32, to see that all of it runs; its figures say nothing.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

DRY = {  # what of the source asks for a GPU: (what stands there, what a CPU takes)
    'torch.device("cuda")': 'torch.device("cpu")',
    ".half()": ".float()",
    "fused=True": "fused=False",
    "@torch.compile\n": "",
    "torch.cuda.Event(enable_timing=True)": "Clock()",
    "torch.cuda.synchronize()": "None",
    "G.bfloat16()": "G.float()",
}
SMALL = {"train": 4_000, "test": 500}  # pictures of a dry run


class Clock:
    """What a dry run has for a CUDA event."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other) -> float:
        return 1e3 * (other.at - self.at)


def pictures(root: str, folder: Path, dry: bool) -> None:
    """The files that the source reads, made of torchvision's; it would download what is not there."""
    import torch
    import torchvision

    folder.mkdir()
    for name in SMALL:
        data, few = torchvision.datasets.CIFAR10(root, train=name == "train"), SMALL[name] if dry else None
        images, labels = torch.tensor(data.data[:few]), torch.tensor(data.targets[:few])
        torch.save({"images": images, "labels": labels, "classes": data.classes}, folder / f"{name}.pt")


def theirs(source: str, root: str, runs: int, dry: bool) -> dict:
    """In this process: {"seconds": of training, "accuracy": ...}, each a list."""
    import torch

    text, module = Path(source).read_text(), types.ModuleType("airbench")
    if dry:
        for there, instead in DRY.items():
            if there not in text:
                sys.exit(f"{source} has no {there!r}: --dry knows commit f1c599c of airbench94_muon.py only")
            text = text.replace(there, instead)
        module.Clock = Clock
    sys.argv = [source]  # it reads its own text
    found, last = {"seconds": [], "accuracy": []}, 0.0

    def told(variables: dict, is_final_entry: bool) -> None:
        nonlocal last
        if is_final_entry:
            found["seconds"].append(last)
            found["accuracy"].append(variables["tta_val_acc"])
        last = variables["time_seconds"]

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pictures(root, Path("cifar10"), dry)
        exec(compile(text, source, "exec"), module.__dict__)
        module.print_training_details = told
        network = module.CifarNet()
        if not dry:
            network = network.cuda()
        network = network.to(memory_format=torch.channels_last)
        if not dry:
            network.compile(mode="max-autotune")
        module.main("warmup", network)
        for values in found.values():
            values.clear()
        for run in range(runs):
            module.main(run, network)
    return found


def ours(root: str, runs: int, dry: bool, overrides: list[str]) -> dict:
    """The same of our command; errors of six views are what its recipe evaluates."""
    seeds = ",".join(map(str, range(runs)))
    keys = (
        f"experiment=cifar10_faster dataset.root={root} trackers.wandb.mode=disabled evaluate.every=8 "
        f"hardware.own_process=false checkpoint.keep=none hydra.sweep.dir=runs seed={seeds}"
    )
    keys += (
        f" hardware.device=cpu hardware.threads=1 dataset.limit={SMALL['train']}"
        if dry
        else " hardware.precision=bf16 hardware.compile=true"
    )
    with tempfile.TemporaryDirectory() as folder:
        asked = [sys.executable, "-m", "adabatch", "-m", *keys.split(), *overrides]
        done = subprocess.run(asked, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(asked)}\n{done.stdout}")
        found = [json.loads(path.read_text()) for path in Path(folder).glob("runs/*/summary.json")]
    found.sort(key=lambda summary: summary["seed"])
    return {
        "seconds": [summary["train_seconds"] for summary in found],
        "accuracy": [1 - summary["final_test_error"] for summary in found],
    }


def show(name: str, found: dict) -> None:
    seconds, accuracy = found["seconds"], found["accuracy"]
    spread = f"± {100 * statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
    print(
        f"{name:8} {statistics.median(seconds):8.3f} s ({min(seconds):.3f} to {max(seconds):.3f})   "
        f"{100 * statistics.mean(accuracy):.2f} % {spread}   n = {len(seconds)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("root")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    source, root = os.path.abspath(asked.source), os.path.abspath(asked.root)
    if asked.contender:
        Path(asked.contender).write_text(json.dumps(theirs(source, root, asked.runs, asked.dry)))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "theirs.json"
        again = [sys.executable, __file__, source, root, "--runs", str(asked.runs), "--contender", str(out)]
        if subprocess.run([*again, *["--dry"] * asked.dry]).returncode:
            sys.exit("the source failed: see above")
        report = {"airbench": json.loads(out.read_text())}
    report["ours"] = ours(root, asked.runs, asked.dry, asked.overrides)
    for name, found in report.items():
        show(name, found)
    ratio = statistics.median(report["airbench"]["seconds"]) / statistics.median(report["ours"]["seconds"])
    print(f"ours trains in 1 / {ratio:.2f} of its time" + (" (dry: says nothing)" if asked.dry else ""))
    if asked.out:
        Path(asked.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
