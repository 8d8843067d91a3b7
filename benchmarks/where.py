"""Where the time of a training step goes on a CPU, by torch.profiler, and the floor under it.

    python benchmarks/where.py [--models resnet,alexnet,vgg] [--batch 128] [--steps 30] [key=value ...]

The command `adabatch` itself, as in train_loop.py. Printed are milliseconds of a step in the training
thread: each operation's own time, what it calls left out, in groups; what is left of the step is Python.
"Products alone": the network's FLOP (one multiplication and one addition each, forward and backward, as
torch counts them) at the rate of a float32 or bf16 product of 2,048 x 2,048 matrices in the same process,
just after: no step of unreduced products is shorter. The profiler itself costs 1 or 2 us an operation.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import train_loop

# An operation belongs to the first group of which a word is in its name.
GROUPS = {
    "convolutions, library": ("convolution", "mkldnn"),
    "products of matrices": ("::mm", "::addmm", "::bmm", "::baddbmm", "::dot", "::mv"),
    "ghost norm, our kernel": ("ours: forward", "ours: backward"),
    "mixing of inputs, our kernel": ("ours: mixed",),
    "batch norm, library": ("batch_norm",),
    "pooling, ReLU, loss": ("pool", "relu", "threshold", "softmax", "nll_loss", "clamp", "dropout"),
    "optimizer": ("_fused",),
    "gathering, copies, sums": (
        "index", "gather", "copy", "add", "mul", "sub", "sum", "fill", "zero", "cat", "div",
    ),
}  # fmt: skip
REST, PYTHON = "other operations", "outside operations: Python"


class Recorded:
    """A library of C functions; the profiler sees their calls."""

    def __init__(self, library):
        self.library = library

    def __getattr__(self, name: str):
        return Call(name, getattr(self.library, name))


class Call:
    def __init__(self, name: str, function):
        self.__dict__.update(name=name, function=function)

    def __call__(self, *given):
        from torch.profiler import record_function

        with record_function(f"ours: {self.name}"):
            return self.function(*given)

    def __setattr__(self, name: str, value) -> None:
        setattr(self.function, name, value)  # argtypes, restype


class Watch:
    """Asked at every step: warms up, profiles, prints JSON and ends the process."""

    def __init__(self, spec: dict):
        self.spec, self.step, self.profile, self.began = spec, 0, None, None

    def passed(self) -> None:
        import torch

        now = time.perf_counter()
        self.began, self.step = self.began or now, self.step + 1
        if self.profile is None and now - self.began > self.spec["warm"]:
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.start()
            self.faults = faults()
            self.began, self.step = time.perf_counter(), 0
        elif self.profile and self.step == self.spec["steps"]:
            seconds, paged = now - self.began, (faults() - self.faults) / self.step
            self.profile.stop()
            found = grouped(self.profile.events(), seconds, self.spec["steps"])
            found |= {"rate": rate(self.spec["name"]), "faults": paged / self.spec["batch"]}
            print("found " + json.dumps(found), flush=True)
            os._exit(0)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def grouped(events, seconds: float, steps: int) -> dict:
    """{"step": ms of a step, "groups": {group: ms}, "rest": the largest operations of no group}."""
    events = list(events)
    threads = [e.thread for e in events if "_fused" in e.name or "convolution" in e.name]
    main = statistics.mode(threads)
    groups, rest = dict.fromkeys([*GROUPS, REST], 0.0), {}
    for event in (e for e in events if e.thread == main):
        name = next((g for g, words in GROUPS.items() if any(w in event.name for w in words)), REST)
        spent = event.self_cpu_time_total / 1000 / steps
        groups[name] += spent
        if name == REST:
            rest[event.name] = rest.get(event.name, 0.0) + spent
    groups[PYTHON] = seconds * 1000 / steps - sum(groups.values())
    largest = sorted(rest.items(), key=lambda item: -item[1])[:5]
    return {"step": seconds * 1000 / steps, "groups": groups, "rest": dict(largest)}


def rate(precision: str) -> float:
    """FLOP/s of a matrix product, the median of 9."""
    import torch

    a, b = (
        torch.randn(2048, 2048).to(torch.bfloat16 if precision == "bf16" else torch.float32) for _ in "ab"
    )
    taken = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(taken[1:])


def contend(spec: dict) -> None:
    """In the process that is profiled."""
    from adabatch import environment, jobs

    environment.before_torch()
    from adabatch import native

    library = native.kernels
    native.kernels = lambda: Recorded(library())
    watch = Watch(spec)

    class Gate(jobs.Stop):
        reason = property(lambda _: watch.passed(), lambda *_: None)

    jobs.Stop = Gate
    train_loop.command(spec)


def show(model: str, batch: int, found: dict) -> None:
    step, floor = found["step"], batch * train_loop.flop(model) / found["rate"] * 1000
    speed, paged = f"{batch / step * 1000:,.0f} images/s", f"{found['faults']:.1f} page faults an image"
    print(f"\n{model}, batch {batch}: {step:.1f} ms a step, {speed}, {paged}")
    print("| | ms | share |\n|---|---|---|")
    for name, spent in found["groups"].items():
        if spent > 0.005 * step:
            print(f"| {name} | {spent:.1f} | {100 * spent / step:.0f} % |")
    print(
        f"| products alone, {found['rate'] / 1e12:.2f} TFLOP/s | {floor:.1f} | {100 * floor / step:.0f} % |"
    )
    print("largest of the others: " + ", ".join(f"{k} {v:.1f}" for k, v in found["rest"].items()), flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default="resnet,alexnet,vgg")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--warm", type=float, default=8, help="seconds of training before")
    p.add_argument("--steps", type=int, default=30, help="that are profiled")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    p.add_argument("--data", help="folder of torchvision's CIFAR-10; default: made-up pictures")
    p.add_argument("--samples", type=int, default=10_000, help="made-up pictures")
    p.add_argument("--out", help="JSON file")
    p.add_argument("--contender", help=argparse.SUPPRESS)
    p.add_argument("overrides", nargs="*", help="of our command, such as model.ghost=64")
    asked = p.parse_args()
    if asked.contender:
        return contend(json.loads(asked.contender))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results, code = {"machine": train_loop.machine(), "asked": vars(asked)}, 0
    print(" ".join(f"{k}={v}" for k, v in results["machine"].items()), f"threads={asked.threads}", flush=True)
    for model in asked.models.split(","):
        with tempfile.TemporaryDirectory(prefix="adabatch-bench-") as folder:
            spec = dict(
                name=asked.precision, model=model, batch=asked.batch, device="cpu", threads=asked.threads,
                data=asked.data, samples=asked.samples, overrides=asked.overrides, folder=folder,
                warm=asked.warm, steps=asked.steps,
            )  # fmt: skip
            line = [sys.executable, __file__, "--contender", json.dumps(spec)]
            ended = subprocess.run(line, capture_output=True, text=True)
        told = [text for text in ended.stdout.splitlines() if text.startswith("found ")]
        if not told:
            print(f"{model} failed:\n{ended.stderr[-2000:]}", file=sys.stderr)
            code = 1
            continue
        results[model] = json.loads(told[-1].removeprefix("found "))
        show(model, asked.batch, results[model])
    if asked.out:
        from adabatch.files import write_json

        write_json(asked.out, results)
    sys.exit(code)


if __name__ == "__main__":
    main()
