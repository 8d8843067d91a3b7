"""A plain PyTorch loop whose batch grows from 32 to 256 while the learning rate decays (AdaBatch, arXiv
1712.02029). Stopped, it goes on where it was when it is started again.

    cd examples
    python plain_loop.py
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adabatch import BatchSampler, Schedule, Steps


def main(saved: str = "plain_loop.pt", stop: int | None = None) -> float:
    """Trains 20 epochs and returns the test error. saved: where to keep the state; stop: go no further than
    this position (samples seen), as if it were killed there."""
    inputs, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    inputs = inputs.float() / 16  # [1797, 64]
    train, test = TensorDataset(inputs[:1437], labels[:1437]), (inputs[1437:], labels[1437:])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = Schedule(samples=len(train), epochs=20, base_batch=32, base_lr=0.1,
                        growth=Steps(2, every=5), decay=Steps(0.375, every=5))  # fmt: skip
    sampler = BatchSampler(schedule, len(train), seed=0)
    parts = dict(model=model, optimizer=optimizer, sampler=sampler)
    if os.path.exists(saved):
        for name, state in torch.load(saved).items():
            parts[name].load_state_dict(state)

    def save():
        torch.save({name: part.state_dict() for name, part in parts.items()}, saved)

    loader = DataLoader(train, batch_sampler=sampler, num_workers=2)
    for step, (x, y) in enumerate(loader):
        setting = sampler.setting()  # of the batch in hand, however far ahead the workers are
        for group in optimizer.param_groups:
            group["lr"] = setting.lr
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / setting.divisor
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sampler.finish()
        if step % 100 == 0:
            save()
            print(f"{sampler.position:6,} samples  batch {len(x):3}  lr {setting.lr:.4f}  loss {loss:.4f}")
        if stop is not None and sampler.position >= stop:
            return 1.0
    save()
    error = float((model(test[0]).argmax(1) != test[1]).float().mean())
    print(f"test error {error:.1%} after {sampler.position:,} samples")
    return error


if __name__ == "__main__":
    main()
