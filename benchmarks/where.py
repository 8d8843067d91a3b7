"""Where the time of a training step goes on a CPU, by torch.profiler, and the floor under it.

    python benchmarks/where.py [--models resnet,alexnet,vgg] [--batch 128] [--rounds 3] [key=value ...]

The command `adabatch` itself, as in train_loop.py. A round is a matrix product, some steps without the
profiler and as many with it. Printed are milliseconds of a step in the training thread: each operation's own
time, what it calls left out, in groups, scaled so that they sum to the step without the profiler (medians of
rounds). "Products alone": the network's FLOP (one multiplication and one addition each, forward and backward;
taps that fall on a convolution's padding left out) at the rate of that product of 2,048 x 2,048 matrices:
with products of no fewer multiplications, at no better rate than that one, a step is not shorter.
"""

import argparse
import json
import math
import os
import resource
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
    "Python of our own functions": ("Bilinear", "Native", "Library", "_Windows", "_Dense"),
    "batch norm, library": ("batch_norm",),
    "pooling, ReLU, loss": ("pool", "relu", "threshold", "softmax", "nll_loss", "clamp", "dropout"),
    "optimizer": ("_fused",),
    "gathering, copies, sums": (
        "index", "gather", "copy", "add", "mul", "sub", "sum", "fill", "zero", "cat", "div",
    ),
}  # fmt: skip
REST, PYTHON = "other operations", "Python outside operations"


class Recorded:
    """A library of C functions; the profiler sees their calls."""

    def __init__(self, loaded):
        self.loaded = loaded

    def __getattr__(self, name: str):
        return Call(name, getattr(self.loaded, name))


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
    """Asked at every step: warms up, then takes rounds, prints JSON and ends the process."""

    def __init__(self, spec: dict):
        self.spec, self.began, self.rounds = spec, None, []
        self.script = self.play()

    def passed(self) -> None:
        self.began = self.began or time.perf_counter()
        if time.perf_counter() - self.began > self.spec["warm"]:
            next(self.script)

    def play(self):
        """A generator that is resumed at every step's end."""
        import torch

        steps = self.spec["steps"]
        for _ in range(self.spec["rounds"]):
            found = {"rate": rate(self.spec["name"])}
            paged, began = faults(), time.perf_counter()
            for _ in range(steps):
                yield
            found["plain"] = (time.perf_counter() - began) * 1000 / steps
            found["faults"] = (faults() - paged) / (steps * self.spec["batch"])
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                began = time.perf_counter()
                for _ in range(steps):
                    yield
                seconds = time.perf_counter() - began
            self.rounds.append(found | grouped(profile.events(), seconds * 1000, steps))
        print("found " + json.dumps(self.rounds), flush=True)
        os._exit(0)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def grouped(events, milliseconds: float, steps: int) -> dict:
    """{"profiled": ms of a step, "groups": {group: ms of a step}, "rest": {operation of no group: ms}}.

    events: torch.profiler's, of `steps` steps that took so many milliseconds together.
    """
    events = list(events)
    main = statistics.mode(e.thread for e in events)
    groups, rest = dict.fromkeys([*GROUPS, REST], 0.0), {}
    for event in (e for e in events if e.thread == main):
        name = next((g for g, words in GROUPS.items() if any(w in event.name for w in words)), REST)
        spent = event.self_cpu_time_total / 1000 / steps
        groups[name] += spent
        if name == REST:
            rest[event.name] = rest.get(event.name, 0.0) + spent
    groups[PYTHON] = milliseconds / steps - sum(groups.values())
    return {"profiled": milliseconds / steps, "groups": groups, "rest": rest}


def rate(precision: str) -> float:
    """FLOP/s of a matrix product, the median of 9."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(2048, 2048, dtype=dtype) for _ in "ab")
    taken = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(taken[1:])


def flop(net, side: int, padding: bool = False) -> int:
    """FLOP of one picture [3, side, side], forward and backward, of convolutions and linear layers.

    padding: count taps that fall on padding, too, as torch's own counter does. The first layer's input needs
    no gradient.
    """
    import torch
    from torch import nn

    found = []

    def conv(layer, given, out):
        per_axis = [taps(layer, axis, given[0].shape[2 + axis], padding) for axis in (0, 1)]
        found.append(2 * layer.out_channels * layer.in_channels // layer.groups * math.prod(per_axis))

    def linear(layer, given, out):
        found.append(2 * layer.in_features * layer.out_features)

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(conv)
        elif isinstance(layer, nn.Linear):
            layer.register_forward_hook(linear)
    with torch.no_grad():
        net(torch.zeros(2, 3, side, side))
    return 3 * sum(found) - found[0]


def taps(layer, axis: int, size: int, padding: bool) -> int:
    """Pairs of an output pixel and a tap of the kernel along an axis of so many pixels; without `padding`
    only those where the tap meets a pixel."""
    k, stride, pad, far = (
        getattr(layer, name)[axis] for name in ("kernel_size", "stride", "padding", "dilation")
    )
    outputs = (size + 2 * pad - far * (k - 1) - 1) // stride + 1
    meets = (0 <= o * stride + t * far - pad < size for o in range(outputs) for t in range(k))
    return outputs * k if padding else sum(meets)


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


def show(model: str, batch: int, rounds: list[dict]) -> None:
    import loops
    from torch import nn

    def middle(key, digits=1) -> str:
        values = sorted(map(key, rounds))
        texts = (f"{v:,.{digits}f}" for v in (statistics.median(values), values[0], values[-1]))
        return "{} ({} to {})".format(*texts)

    net = loops.NETWORKS[model](loops.plain, nn.BatchNorm2d)
    work = batch * flop(net, loops.SIDE) * 1000  # per ms at a rate of 1 / s
    step = statistics.median(r["plain"] for r in rounds)
    print(
        f"\n{model}, batch {batch}: {middle(lambda r: r['plain'])} ms a step, median (range) of {len(rounds)}"
    )
    print(
        f"with the profiler {middle(lambda r: r['profiled'])} ms, {batch / step * 1000:,.0f} images/s without"
    )
    print(f"{middle(lambda r: r['faults'])} page faults an image")
    print("| | ms | share, % |\n|---|---|---|")
    for name in rounds[0]["groups"]:

        def share(r, name=name) -> float:
            return r["groups"][name] / r["profiled"]

        if (usual := statistics.median(map(share, rounds))) > 0.005:
            print(f"| {name} | {usual * step:.1f} | {middle(lambda r: 100 * share(r), 0)} |")
    floor, rates = middle(lambda r: work / r["rate"]), middle(lambda r: r["rate"] / 1e12, 2)
    of = middle(lambda r: 100 * work / r["rate"] / r["plain"], 0)
    print(f"| products alone, {rates} TFLOP/s | {floor} | {of} |")
    largest = sorted(rounds[-1]["rest"].items(), key=lambda item: -item[1])[:5]
    print("largest of the others, ms: " + ", ".join(f"{k} {v:.1f}" for k, v in largest), flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default="resnet,alexnet,vgg")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--warm", type=float, default=8, help="seconds of training before")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=20, help="of each half of a round")
    train_loop.common(p, samples=10_000)
    asked = p.parse_args()
    if asked.contender:
        return contend(json.loads(asked.contender))
    if min(asked.rounds, asked.steps) < 1:
        p.error(f"--rounds and --steps are 1 or more; got {asked.rounds} and {asked.steps}")
    report, code = train_loop.begin(asked), 0
    for model in asked.models.split(","):
        with tempfile.TemporaryDirectory(prefix="adabatch-bench-") as folder:
            spec = dict(
                name=asked.precision, model=model, batch=asked.batch, device="cpu", threads=asked.threads,
                data=asked.data, samples=asked.samples, overrides=asked.overrides, folder=folder,
                warm=asked.warm, steps=asked.steps, rounds=asked.rounds,
            )  # fmt: skip
            line = [sys.executable, __file__, "--contender", json.dumps(spec)]
            ended = subprocess.run(line, capture_output=True, text=True)
        told = [text for text in ended.stdout.splitlines() if text.startswith("found ")]
        if not told:
            print(f"{model} failed:\n{ended.stderr[-2000:]}", file=sys.stderr)
            code = 1
            continue
        rounds = json.loads(told[-1].removeprefix("found "))
        report["results"].append({"model": model, "batch": asked.batch, "rounds": rounds})
        show(model, asked.batch, rounds)
        train_loop.keep(report, asked.out)
    sys.exit(code)


if __name__ == "__main__":
    main()
