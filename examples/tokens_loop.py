"""A small language model counted in tokens, with Adam and Seesaw (Meterez et al. 2025, arXiv 2510.14717).

    cd examples
    python tokens_loop.py

Seesaw: wherever a cosine has halved the learning rate, the batch is doubled and the learning rate only
divided by the square root of 2. In adabatch's terms: growth 2 and decay 1/2 at the same positions with
square-root scaling. The text is scikit-learn's own documentation of its data sets.
"""

import math

import torch
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adabatch import BatchSampler, Schedule, Steps

LENGTH = 64  # tokens in a sequence: what one item of the dataset holds, and what batches are multiples of
EPOCHS = 8


def sequences() -> tuple[torch.Tensor, int]:
    """Characters as int64 [sequences, LENGTH + 1], and how many different ones there are."""
    loaders = (datasets.load_breast_cancer, datasets.load_digits, datasets.load_iris, datasets.load_wine,
               datasets.load_diabetes, datasets.load_linnerud)  # fmt: skip
    text = "".join(load().DESCR for load in loaders)
    known = sorted(set(text))
    tokens = torch.tensor([known.index(character) for character in text])
    return tokens[: (len(tokens) - 1) // LENGTH * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH), len(known)


class Model(nn.Module):
    """The next character from the last eight: a causal convolution."""

    def __init__(self, vocabulary: int, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix, self.out = nn.Conv1d(width, 2 * width, 8), nn.Linear(2 * width, vocabulary)

    def forward(self, x):
        past = nn.functional.pad(self.embed(x).transpose(1, 2), (7, 0))  # [n, width, LENGTH + 7]
        return self.out(self.mix(past).relu().transpose(1, 2))  # [n, LENGTH, vocabulary]


def seesaw(tokens: int) -> Schedule:
    """A schedule in tokens: `samples`, batches, and positions all count them."""
    halved = [EPOCHS * math.acos(2 ** (1 - k) - 1) / math.pi for k in (1, 2, 3)]  # (1 + cos pi t) / 2 = 2^-k
    return Schedule(
        samples=tokens,
        epochs=EPOCHS,
        base_batch=8 * LENGTH,
        multiple=LENGTH,  # whole sequences
        base_lr=0.003,
        growth=Steps(2, milestones=halved),
        decay=Steps(0.5, milestones=halved),
        scaling="sqrt",
        noise_exponent=0.5,  # Adam: the noise of a step goes with lr / sqrt(batch)
        warmup_epochs=0.5,
        warmup_from=0.0,
    )


def main() -> list[tuple[int, float, float]]:
    """(tokens of the batch, learning rate, loss per token) of every step."""
    data, vocabulary = sequences()
    torch.manual_seed(0)
    model = Model(vocabulary)
    optimizer = torch.optim.Adam(model.parameters())
    sampler = BatchSampler(seesaw(len(data) * LENGTH), len(data), seed=0, unit=LENGTH)
    steps = []
    for (batch,) in DataLoader(TensorDataset(data), batch_sampler=sampler):
        setting = sampler.setting()
        for group in optimizer.param_groups:
            group["lr"] = setting.lr
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        optimizer.zero_grad()
        (loss / setting.divisor).backward()  # the divisor counts tokens, as the sum of losses does
        optimizer.step()
        sampler.finish()
        steps.append((setting.batch_size, setting.lr, loss.item() / setting.batch_size))
        if len(steps) % 50 == 0:
            print(
                f"{sampler.position:8,} tokens  batch {steps[-1][0]:5,}  "
                f"lr {setting.lr:.5f}  loss {steps[-1][2]:.3f}"
            )
    print(f"{sampler.position:8,} tokens  last loss {steps[-1][2]:.3f}")
    return steps


if __name__ == "__main__":
    main()
