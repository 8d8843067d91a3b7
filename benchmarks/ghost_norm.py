"""Ghost batch norm and ReLU by our kernel in C, by torch's for each group, and plain batch norm; whole steps.

python benchmarks/ghost_norm.py [--rounds 15] [--batch 128] [--threads 2] [--steps resnet,vgg]

Milliseconds of forward and backward of a norm (groups of 32) and ReLU in channels_last, medians over rounds
with quartiles; the three take turns, ratios are within a round. Then images/s of our step with
hardware.ghost_norm=auto and library.
"""

import argparse
import math

from convolution import in_turns, quartiles, step  # sets torch's environment first

import torch  # isort: skip
import torch.nn.functional as F

from adabatch import crowding, ghostnorm, layers

SHAPES = {  # channels, side
    "ResNet-20, 32x32": (16, 32),
    "ResNet-20, 16x16": (32, 16),
    "ResNet-20, 8x8": (64, 8),
    "VGG, 32x32": (64, 32),
    "VGG, 8x8": (256, 8),
    "VGG, 2x2": (512, 2),
}


def norm(channels: int, side: int, batch: int, dtype, rounds: int) -> str:
    shape = (batch, channels, side, side)
    x, grad = (torch.randn(shape).to(dtype).to(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    weight, bias = torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    sizes = layers.group_sizes(batch, 32)

    def ghost(ours: bool):
        return ghostnorm.grouped(x, weight, bias, sizes, 1e-5, None, math.inf, ours)[0]

    works = {
        "ours": lambda: torch.autograd.grad(ghost(True), [x, weight, bias], grad),
        "torch": lambda: torch.autograd.grad(ghost(False), [x, weight, bias], grad),
        "plain": lambda: torch.autograd.grad(
            F.relu(F.batch_norm(x, None, None, weight, bias, True), inplace=True), [x, weight, bias], grad
        ),
    }
    found = {name: [1e3 * v for v in values] for name, values in in_turns(works, rounds).items()}
    ratios = [
        quartiles([a / b for a, b in zip(found[name], found["ours"], strict=True)])
        for name in ("torch", "plain")
    ]
    return " | ".join([*(quartiles(values) for values in found.values()), *ratios])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", default="resnet,vgg", help="networks of whole steps; '' = none")
    asked = p.parse_args()
    torch.set_num_threads(asked.threads)
    crowding.watch(asked.threads)
    ghostnorm.checked()
    print("| norm and ReLU, ms | ours | torch's by group | plain | torch's / ours | plain / ours |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for name, (channels, side) in SHAPES.items():
            said = norm(channels, side, asked.batch, dtype, asked.rounds)
            print(f"| {name}, {str(dtype)[6:]} | {said} |", flush=True)
    print("\n| step, images/s | auto | library | auto / library |\n|---|---|---|---|")
    for model in filter(None, asked.steps.split(",")):
        for precision in ("bf16", "fp32"):
            said = step("ghost_norm", model, precision, asked.batch, asked.threads, asked.rounds)
            print(f"| {model}, {precision} | {said} |", flush=True)


if __name__ == "__main__":
    main()
