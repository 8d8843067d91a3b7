"""Images a second of our training loop against the usual one and the best one written by hand.

    python benchmarks/train_loop.py [--models resnet,alexnet,vgg] [--batches 128,1024] [--only NAMES]

fp32, bf16, +compile  the command `adabatch` itself: its loop with rows, ledger, ghost norms and every check.
                      W&B is off, and it neither evaluates nor saves while it is timed. Further overrides can
                      be given. tf32, which GPUs alone have, runs when it is asked for.
reference             (a) what most scripts do: DataLoader with two workers, transforms sample by sample,
                      float32, NCHW, eager, loss.item() every step.
hand                  (b) by hand for one machine: batched data, bf16, channels_last, fused SGD, glibc told to
                      keep memory, ResNet-20 compiled, small maps as matrix products; plain batch norm.
hand-fp32             the same in float32, which is the faster one on a CPU without AMX, and with
                      products for maps of 2x2 only.
hand-ghost            "hand" with ghost norms of 32 samples, which is our mathematics.

The contenders take turns (`turns.py`): each in a process of its own, stopped while another one computes.
Ratios are taken within a round; printed are medians (first to third quartile). "Of the ceiling": the
reference's FLOP/s over those of a float32 matrix product in the same round.
"""

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import turns

OURS = {name: [f"hardware.precision={name}"] for name in ("fp32", "bf16")}
OURS |= {f"{name}+compile": [*keys, "hardware.compile=true"] for name, keys in OURS.items()}
OURS["tf32"] = ["hardware.precision=tf32"]
PEERS = ("reference", "hand", "hand-fp32", "hand-ghost")
CEILINGS = ("matmul-fp32", "matmul-bf16")
# On request only: broken by a fault of the compiler's on a CPU (docs/log.md), and what a GPU alone has.
ASIDE = ("hand-ghost", "bf16+compile", "tf32")
MODELS = ("resnet", "alexnet", "vgg", "resnet9")


# -- in the process of a contender -------------------------------------------------------------------


def contend(spec: dict) -> None:
    """Compute in turns until the parent is gone."""
    if spec["name"] in OURS:
        return ours(spec)
    if spec["name"].startswith("hand"):
        keep_memory()
    import loops
    import torch

    torch.set_num_threads(spec["threads"])
    device, loss = spec["device"], None

    def finish() -> None:
        if loss is not None and not math.isfinite(float(loss)):  # waits for the device
            raise RuntimeError("the loss is not finite")

    taking = turns.Turns(finish)
    if spec["name"] in CEILINGS:
        products(taking, spec["name"], device)
    data, model, batch = loops.pictures(spec["data"], spec["samples"]), spec["model"], spec["batch"]
    if spec["name"] == "reference":
        steps = loops.reference(model, batch, data, device)
    else:
        dtype = torch.float32 if spec["name"] == "hand-fp32" else torch.bfloat16
        steps = loops.by_hand(model, batch, data, device, ghost=spec["name"] == "hand-ghost", dtype=dtype)
    for loss in steps:  # noqa: B007 (finish reads it)
        taking.passed(batch)


def keep_memory() -> None:
    """glibc's allocator returns large blocks to the system at every free; then each step faults them in
    again, page by page (30 % of an eager step in bf16)."""
    import ctypes

    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # read when torch is imported
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, 2**31 - 1)


def products(taking, name: str, device: str) -> None:
    """Square matrix products; the items are FLOP."""
    import torch

    side = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    taking.finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    while True:
        a @ b
        taking.passed(2 * side**3)


def ours(spec: dict) -> None:
    """The command line, whose question at every step, whether to stop, passes the turn on."""
    from adabatch import jobs

    def finish() -> None:
        if spec["device"] == "cuda":
            sys.modules["torch"].cuda.synchronize()  # imported by now, and not before the command wants it

    taking = turns.Turns(finish)

    class Gate(jobs.Stop):
        reason = property(lambda _: taking.passed(spec["batch"]), lambda *_: None)

    jobs.Stop = Gate
    command(spec)


def command(spec: dict) -> None:
    """The command `adabatch` in this very process, to its end."""
    from adabatch import __main__

    data = [f"dataset=cifar10 dataset.root={spec['data']}"] if spec["data"] else [
        f"dataset=synthetic dataset.samples={spec['samples']} dataset.augment.pad=4 dataset.augment.flip=true"
    ]  # fmt: skip
    keys = (
        f"model={spec['model']} schedule.base_batch={spec['batch']} schedule.base_lr=0.001 epochs=100000 "
        "evaluate.every=100000 checkpoint.every_seconds=1000000000 trackers.wandb.mode=disabled "
        f"hardware.threads={spec['threads']} hardware.device={spec['device']} hydra.run.dir={spec['folder']}"
    )
    sys.exit(__main__.command([*data[0].split(), *keys.split(), *OURS[spec["name"]], *spec["overrides"]]))


# -- in the parent -----------------------------------------------------------------------------------


def quartiles(values: list[float]) -> dict:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "rounds": values}


def flop(model: str) -> int:
    """FLOP of an image, forward and backward."""
    import loops
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    net = loops.NETWORKS[model](loops.plain, torch.nn.BatchNorm2d)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, 3, loops.SIDE, loops.SIDE)).sum().backward()
    return counter.get_total_flops() // 2


def measure(asked, model: str, batch: int, device: str) -> dict:
    """Everything about one network at one batch."""
    folder = tempfile.mkdtemp(prefix="adabatch-bench-")
    common = dict(
        model=model, batch=batch, device=device, threads=asked.threads, data=asked.data,
        samples=asked.samples, overrides=asked.overrides,
    )  # fmt: skip

    def command(name):
        spec = common | {"name": name, "folder": f"{folder}/{name}"}
        return [sys.executable, __file__, "--contender", json.dumps(spec)]

    began, load, programs = time.time(), os.getloadavg(), {name: command(name) for name in asked.only}
    try:
        speeds, failed = turns.compete(programs, asked.rounds, asked.seconds, turns.Lock(asked.lock))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = dict(model=model, batch=batch, flop=flop(model), load=load, failed=failed, speed={}, ratio={})
    found["seconds"] = time.time() - began
    for name, values in speeds.items():
        found["speed"][name] = quartiles(values)
        for peer in (
            p for p in (*PEERS, "matmul-fp32") if p in speeds and p != name and name not in CEILINGS
        ):
            scale = found["flop"] if peer == "matmul-fp32" else 1
            ratios = [scale * ours / theirs for ours, theirs in zip(values, speeds[peer], strict=True)]
            found["ratio"][f"{name} / {peer}"] = quartiles(ratios)
    return found


def spread(found: dict, digits: int) -> str:
    return "{median:,.{d}f} ({q1:,.{d}f} to {q3:,.{d}f})".format(d=digits, **found)


def show(found: dict) -> None:
    ratios, speed = found["ratio"], found["speed"]
    print(
        f"\n{found['model']}, batch {found['batch']} ({found['seconds']:.0f} s, load {found['load'][0]:.1f})"
    )
    for name in (n for n in CEILINGS if n in speed):
        print(f"{name}: {spread({k: v / 1e12 for k, v in speed[name].items() if k != 'rounds'}, 3)} TFLOP/s")
    if of := ratios.get("reference / matmul-fp32"):
        print(f"reference, of the ceiling: {spread(of, 3)} at {found['flop'] / 1e9:.3f} GFLOP an image")
    print(f"| loop | images/s | {' | '.join(f'/ {peer}' for peer in PEERS)} |\n|{'---|' * (2 + len(PEERS))}")
    for name in (n for n in speed if n not in CEILINGS):
        cells = [spread(r, 2) if (r := ratios.get(f"{name} / {peer}")) else "" for peer in PEERS]
        print(f"| {name} | {spread(speed[name], 0)} | {' | '.join(cells)} |", flush=True)
    for name, why in found["failed"].items():
        print(f"{name} failed: {why}", file=sys.stderr, flush=True)


def compare(results: list[dict], path: str) -> None:
    """A warning for each ratio that is below half of what the file expects. It decides nothing."""
    expected = json.loads(Path(path).read_text())["ratio"]
    for found in results:
        where = f"{found['model']} {found['batch']}"
        for name, before in expected.get(where, {}).items():
            now = found["ratio"].get(name, {}).get("median", 0.0)
            word = "warning: " if now < before / 2 else ""
            print(f"{word}{where}: {name} is {now:.2f}, expected about {before}")


def machine() -> dict:
    """What the figures were measured on."""
    import torch

    from adabatch import environment

    found = dict(cpu=environment.cpu(), cores=environment.cores(), python=platform.python_version())
    found |= dict(torch=torch.__version__, commit=environment.commit(Path.cwd()), time=time.strftime("%F %T"))
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def common(p: argparse.ArgumentParser, samples: int) -> None:
    """The options that techniques.py and where.py have, too."""
    cores = len(os.sched_getaffinity(0))
    p.add_argument("--threads", type=int, default=cores, help="of each contender; default: one per core")
    p.add_argument("--data", help="folder of torchvision's CIFAR-10; default: made-up pictures")
    p.add_argument("--samples", type=int, default=samples, help="made-up pictures")
    p.add_argument("--out", help="JSON file, written after each network and batch")
    p.add_argument("--contender", help=argparse.SUPPRESS)
    p.add_argument("overrides", nargs="*", help="of our command, such as model.ghost=64")


def begin(asked) -> dict:
    """The report, empty; says on what it is measured. SIGTERM ends contenders and removes folders."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = {"machine": machine(), "asked": vars(asked), "results": []}
    print(" ".join(f"{k}={v}" for k, v in report["machine"].items()), f"threads={asked.threads}", flush=True)
    return report


def keep(report: dict, path: str | None) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    names = (*CEILINGS, *PEERS, *OURS)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--batches", default="128,1024")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=2.0, help="about so long is a turn")
    default = [n for n in names if n not in ASIDE]
    p.add_argument("--only", default=",".join(default), help="names as above, and: " + ", ".join(CEILINGS))
    p.add_argument("--device", help="cpu or cuda; default: a GPU where there is one")
    p.add_argument("--lock", help="file that is locked (flock) while turns are taken, on a shared machine")
    p.add_argument("--expect", help="JSON file of ratios; warns where one has dropped by half")
    common(p, samples=50_000)
    asked = p.parse_args()
    if asked.contender:
        return contend(json.loads(asked.contender))
    asked.only = [name.strip() for name in asked.only.split(",")]
    for wrong in [*(set(asked.only) - set(names)), *(set(asked.models.split(",")) - set(MODELS))]:
        p.error(f"unknown: {wrong}; contenders are {', '.join(names)}; models {', '.join(MODELS)}")
    if asked.rounds < 2:
        p.error(f"--rounds is 2 or more, for quartiles; got {asked.rounds}")
    import torch

    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    report = begin(asked)
    for model in asked.models.split(","):
        for batch in map(int, asked.batches.split(",")):
            report["results"].append(measure(asked, model, batch, device))
            show(report["results"][-1])
            keep(report, asked.out)
    if asked.expect:
        compare(report["results"], asked.expect)
    sys.exit(any(found["failed"] for found in report["results"]))


if __name__ == "__main__":
    main()
