"""What each technique of the training loop on a CPU gains: alone, and as the last one of all.

    python benchmarks/techniques.py [--models resnet,alexnet] [--batch 128] [--only NAMES] [key=value ...]

Contenders are the command `adabatch` itself, as in train_loop.py, with some of its techniques. "alone": a
technique and what it needs, over what it needs alone. "last": all techniques, over all but it; where others
need it, both without those. They take turns (`turns.py`), ratios are taken within a round; printed are
medians (first to third quartile). All contenders are in memory at once: 17 of up to 2 GB with ResNet-20 at
128; --only NAMES takes fewer.
"""

import argparse
import json
import sys
import tempfile

import train_loop
import turns

# What takes each away: overrides of the command, and variables of its environment.
TECHNIQUES = {
    "every core": ([], {}),  # spec["threads"]
    "channels_last": (["hardware.memory_format=contiguous"], {}),
    "small maps as products": (["hardware.convolution=library"], {}),
    "kernel of ghost norm": (["hardware.ghost_norm=library"], {}),
    "SGD in one pass": ([], {}),  # in_passes
    "threads wait awake": ([], {"GOMP_SPINCOUNT": "1000"}),
    "memory kept": ([], {"GLIBC_TUNABLES": "", "THP_MEM_ALLOC_ENABLE": "0"}),
}
NEEDS = {  # of another technique: the kernel and the products have forms for channels_last only
    "small maps as products": "channels_last",
    "kernel of ghost norm": "channels_last",
    "threads wait awake": "every core",
}


def in_passes(params, grads, buffers, *, weight_decay, momentum, lr, is_first_step, nesterov, **_) -> None:
    """torch._fused_sgd_ in operations of torch, each of which passes over memory anew."""
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        d = g.add(p, alpha=weight_decay) if weight_decay else g
        if momentum:
            v = buffers[i].copy_(d) if is_first_step else buffers[i].mul_(momentum).add_(d)
            d = d.add(v, alpha=momentum) if nesterov else v
        p.add_(d, alpha=-lr)


def contend(spec: dict) -> None:
    """In the process of a contender."""
    if "SGD in one pass" in spec["without"]:
        from adabatch import environment

        environment.before_torch()
        import torch

        torch._fused_sgd_ = in_passes
    train_loop.ours(spec)


def command(spec: dict, without: list[str], folder: str) -> list[str]:
    """The command line of the contender that lacks these techniques."""
    overrides, variables = list(spec["overrides"]), {}
    for name in without:
        overrides += TECHNIQUES[name][0]
        variables |= TECHNIQUES[name][1]
    threads = 1 if "every core" in without else spec["threads"]
    spec = spec | dict(without=without, overrides=overrides, threads=threads, folder=folder)
    told = [f"{key}={value}" for key, value in variables.items()]
    return ["env", *told, sys.executable, __file__, "--contender", json.dumps(spec)]


def sides(name: str, names: list[str]) -> dict[str, tuple[set, set]]:
    """Of both ratios of a technique: the techniques above the line, those below it."""
    need = {NEEDS[name]} & set(names) if name in NEEDS else set()
    rest = set(names) - {other for other in names if NEEDS.get(other) == name}
    return {"alone": (need | {name}, need), "last": (rest, rest - {name})}


def measure(asked, spec: dict) -> dict:
    """Speeds of every set of techniques that a ratio needs, and the ratios."""
    names = asked.only
    ratios = {name: sides(name, names) for name in names}
    ratios["all of them"] = {"alone": (set(names), set())}
    kinds = {frozenset(side) for ratio in ratios.values() for pair in ratio.values() for side in pair}
    called = {kind: " + ".join(name for name in names if name in kind) or "none" for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="adabatch-bench-") as folder:
        lined = {
            word: command(spec, [n for n in names if n not in kind], f"{folder}/{i}")
            for i, (kind, word) in enumerate(called.items())
        }
        speeds, failed = turns.compete(lined, asked.rounds, asked.seconds, turns.Lock(asked.lock))

    def ratio(pair: tuple[set, set]) -> dict | None:
        over, under = (speeds.get(called[frozenset(side)]) for side in pair)
        return over and under and train_loop.quartiles([a / b for a, b in zip(over, under, strict=True)])

    gains = {name: {key: ratio(pair) for key, pair in of.items()} for name, of in ratios.items()}
    speeds = {word: train_loop.quartiles(values) for word, values in speeds.items()}
    ends = {"all": called[frozenset(names)], "none": "none"}
    return dict(model=spec["model"], batch=spec["batch"], speed=speeds, ends=ends, gain=gains, failed=failed)


def show(found: dict) -> None:
    print(f"\n{found['model']}, batch {found['batch']}")
    for who, word in found["ends"].items():
        if word in found["speed"]:
            print(f"{who}: {train_loop.spread(found['speed'][word], 0)} images/s")
    print("| technique | alone | last |\n|---|---|---|")
    for name, gain in found["gain"].items():
        cells = [train_loop.spread(gain[key], 2) if gain.get(key) else "" for key in ("alone", "last")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for name, why in found["failed"].items():
        print(f"{name} failed: {why}", file=sys.stderr, flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default="resnet,alexnet")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--only", default=",".join(TECHNIQUES), help="names: " + ", ".join(TECHNIQUES))
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=float, default=1.5, help="about so long is a turn")
    p.add_argument("--lock", help="file that is locked (flock) while turns are taken, on a shared machine")
    train_loop.common(p, samples=10_000)
    asked = p.parse_args()
    if asked.contender:
        return contend(json.loads(asked.contender))
    asked.only = [name.strip() for name in asked.only.split(",")]
    if wrong := set(asked.only) - set(TECHNIQUES):
        p.error(f"unknown: {', '.join(sorted(wrong))}; techniques are {', '.join(TECHNIQUES)}")
    if asked.rounds < 2:
        p.error(f"--rounds is 2 or more, for quartiles; got {asked.rounds}")
    report = train_loop.begin(asked)
    for model in asked.models.split(","):
        spec = dict(
            name=asked.precision, model=model, batch=asked.batch, device="cpu", threads=asked.threads,
            data=asked.data, samples=asked.samples, overrides=asked.overrides,
        )  # fmt: skip
        report["results"].append(measure(asked, spec))
        show(report["results"][-1])
        train_loop.keep(report, asked.out)
    sys.exit(any(found["failed"] for found in report["results"]))


if __name__ == "__main__":
    main()
