"""Convolutions on small maps: torch's kernel, products of matrices, fewer products, and whole steps.

python benchmarks/convolution.py [--rounds 5] [--batch 128] [--threads 2] [--steps alexnet,vgg]

Milliseconds of forward and backward of one layer in channels_last, medians over rounds with quartiles; they
take turns. "Chosen" is what hardware.convolution=auto takes there, and by what it divides the library's time.
Then images/s of our step, auto and library.
"""

import argparse
import statistics
import time

from adabatch import environment

environment.before_torch()
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from adabatch import bilinear, config, convolution, crowding  # noqa: E402
from adabatch.build import build  # noqa: E402
from adabatch.schedules.setting import Setting  # noqa: E402

LAYERS = {  # channels in, out, side, kernel, stride, padding
    "AlexNet 1": (3, 64, 32, 11, 4, 5),
    "AlexNet 2": (64, 192, 4, 5, 1, 2),
    "AlexNet 3": (192, 384, 2, 3, 1, 1),
    "AlexNet 4": (384, 256, 2, 3, 1, 1),
    "VGG 512, 4x4": (512, 512, 4, 3, 1, 1),
    "VGG 512, 2x2": (512, 512, 2, 3, 1, 1),
    "VGG 256, 8x8": (256, 256, 8, 3, 1, 1),
    "ResNet 64, 8x8": (64, 64, 8, 3, 1, 1),
}


def quartiles(values) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def in_turns(works: dict, rounds: int) -> dict:
    """{name: seconds of each round}; a first round warms up."""
    found = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if i:
                found[name].append(time.perf_counter() - begun)
    return found


def layer(shape, batch: int, dtype, rounds: int) -> str:
    c, o, side, k, s, p = shape
    x = torch.randn(batch, c, side, side).to(dtype).to(memory_format=torch.channels_last)
    x.requires_grad_(c > 3)  # a first layer's input has no gradient
    conv = torch.nn.Conv2d(c, o, k, s, p, bias=False).to(dtype).to(memory_format=torch.channels_last)
    convolution.adopt(torch.nn.Sequential(conv))
    grad = torch.randn_like(F.conv2d(x, conv.weight, None, s, p))
    wanted = [t for t in (x, conv.weight) if t.requires_grad]
    works = {
        "library": lambda: torch.autograd.grad(F.conv2d(x, conv.weight, None, s, p), wanted, grad),
        "product": lambda: torch.autograd.grad(convolution.product(x, conv.weight, s, p), wanted, grad),
    }
    chosen = {None: "library", bilinear.Bilinear.apply: "bilinear"}.get(conv.form(x), "product")
    if dtype == torch.float32 and side in convolution.FEWER:
        works["bilinear"] = lambda: torch.autograd.grad(bilinear.Bilinear.apply(x, conv.weight), wanted, grad)
    found = {name: [1e3 * v for v in values] for name, values in in_turns(works, rounds).items()}
    ratio = [a / b for a, b in zip(found["library"], found[chosen], strict=True)]
    cells = [quartiles(found[name]) if name in found else "-" for name in ("library", "product", "bilinear")]
    return " | ".join((*cells, chosen, quartiles(ratio)))


def step(key: str, model: str, precision: str, batch: int, threads: int, rounds: int) -> str:
    """hardware.KEY=auto against library."""
    works, positions = {}, {}
    for way in ("auto", "library"):
        lines = [
            f"model={model}", "dataset=synthetic", "dataset.samples=4096", "hardware.device=cpu",
            f"hardware.threads={threads}", f"hardware.precision={precision}", f"hardware.{key}={way}",
        ]  # fmt: skip
        with config.composer():
            tree = config.checked(config.load(lines)).config
        made = build(tree).step
        made.micro_batch, positions[way] = batch, 0

        def work(way=way, made=made):
            made(positions[way], Setting(batch, 0.001, batch))
            positions[way] += batch

        works[way] = work
    found = {name: [batch / v for v in values] for name, values in in_turns(works, rounds).items()}
    ratio = [a / b for a, b in zip(found["auto"], found["library"], strict=True)]
    return f"{quartiles(found['auto'])} | {quartiles(found['library'])} | {quartiles(ratio)}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5, help="at least 2")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", default="alexnet,vgg", help="networks of whole steps; '' = none")
    asked = p.parse_args()
    torch.set_num_threads(asked.threads)
    crowding.watch(asked.threads)
    print("| layer, ms | library | product | bilinear | chosen | library / chosen |\n" + "|---" * 6 + "|")
    for dtype in (torch.bfloat16, torch.float32):
        for name, shape in LAYERS.items():
            said = layer(shape, asked.batch, dtype, asked.rounds)
            print(f"| {name}, {str(dtype)[6:]} | {said} |", flush=True)
    print("\n| step, images/s | auto | library | auto / library |\n|---|---|---|---|")
    for model in filter(None, asked.steps.split(",")):
        for precision in ("bf16", "fp32"):
            said = step("convolution", model, precision, asked.batch, asked.threads, asked.rounds)
            print(f"| {model}, {precision} | {said} |", flush=True)


if __name__ == "__main__":
    main()
