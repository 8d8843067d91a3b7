"""The two peers of benchmarks/train_loop.py: the usual training loop, and the best one written by hand.

Neither uses anything of adabatch. Networks are those of conf/model, with torch's batch norm.
"""

import itertools

import torch
import torch.nn.functional as F
import turns
from torch import nn

MEAN, STD, PAD, SIDE, WORKERS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 4, 32, 2
SGD = dict(lr=0.001, momentum=0.9, weight_decay=5e-4)
MICRO = 512  # images of one pass of the hand-written loop on a CPU: larger ones fall out of the caches


def pictures(root: str | None, count: int):
    """(uint8 [n, 32, 32, 3], int64 [n]): CIFAR-10's training images, or as many made-up ones."""
    if root:
        from torchvision.datasets import CIFAR10

        data = CIFAR10(root, train=True)
        return torch.from_numpy(data.data), torch.tensor(data.targets)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    return inputs, torch.randint(0, 10, (count,), generator=generator)


# -- networks; conv(inputs, outputs, kernel, stride, bias, side of the map), norm(channels) make layers ------


class Block(nn.Module):
    """x: [n, inputs, h, w] -> [n, width, h/stride, w/stride]."""

    def __init__(self, inputs, width, stride, conv, norm):
        super().__init__()
        self.residual = nn.Sequential(
            conv(inputs, width, 3, stride),
            norm(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3),
            norm(width),
        )
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else nn.Sequential(conv(inputs, width, 1, stride), norm(width))

    def forward(self, x):
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


class Network(nn.Module):
    """x: [n, 3, 32, 32] -> logits [n, 10]."""

    def __init__(self, layers, width):
        super().__init__()
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def resnet(conv, norm):
    """ResNet-20 with projection shortcuts."""
    layers, inputs = [conv(3, 16, 3), norm(16), nn.ReLU(inplace=True)], 16
    for width, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        layers.append(Block(inputs, width, stride, conv, norm))
        inputs = width
    return Network(layers, 64)


def vgg(conv, norm):
    """VGG19 with batch norm."""
    layers, inputs, side = [], 3, SIDE
    for count, width in zip((2, 2, 4, 4, 4), (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers += [conv(inputs, width, 3, 1, True, side), norm(width), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
        side //= 2
    return Network(layers, 512)


def alexnet(conv, norm):
    layers = []
    for inputs, width, kernel, stride, side, pool in (
        (3, 64, 11, 4, 32, True), (64, 192, 5, 1, 4, True), (192, 384, 3, 1, 2, False),
        (384, 256, 3, 1, 2, False), (256, 256, 3, 1, 2, True),
    ):  # fmt: skip
        layers += [conv(inputs, width, kernel, stride, True, side), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if pool else []
    return Network(layers, 256)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def resnet9(conv, norm):
    """ResNet-9 of cifar10-fast (dawn.py), but for its last pooling, a mean here, and its logits' scale."""

    def layers(inputs, width, side, *behind):
        return [conv(inputs, width, 3, 1, False, side), norm(width), nn.ReLU(inplace=True), *behind]

    def pair(width, side):
        return Residual(*layers(width, width, side), *layers(width, width, side))

    half = nn.MaxPool2d(2)
    return Network(
        [*layers(3, 64, 32), *layers(64, 128, 32, half), pair(128, 16), *layers(128, 256, 16, half),
         *layers(256, 512, 8, half), pair(512, 4)], 512,
    )  # fmt: skip


NETWORKS = {"resnet": resnet, "vgg": vgg, "alexnet": alexnet, "resnet9": resnet9}


def plain(inputs, outputs, kernel, stride=1, bias=False, side=None):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


# -- (a) the usual loop ----------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    """PIL images and their transforms, one sample at a time, as torchvision's CIFAR10 does it."""

    def __init__(self, inputs, labels):
        from PIL import Image
        from torchvision import transforms as t

        self.pictures, self.labels = [Image.fromarray(x) for x in inputs.numpy()], labels.tolist()
        self.transform = t.Compose(
            [t.RandomCrop(SIDE, padding=PAD), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(MEAN, STD)]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.labels[index]


def reference(model: str, batch: int, data, device):
    """One step after the other (yields the loss): float32, NCHW, eager, the loss read every step."""
    net = NETWORKS[model](plain, nn.BatchNorm2d).to(device)
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    loader = torch.utils.data.DataLoader(
        Pictures(*data), batch, shuffle=True, drop_last=True, num_workers=WORKERS,
        pin_memory=device == "cuda", worker_init_fn=turns.die_with_parent,
    )  # fmt: skip
    while True:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            yield loss.item()


# -- (b) by hand -----------------------------------------------------------------------------------


class Columns(torch.autograd.Function):
    """x: [n, c, s, s] channels_last -> the k x k neighbourhood of each pixel: [n * s * s, k * k * c]."""

    @staticmethod
    def forward(ctx, x, kernel):
        n, c, s, _ = x.shape
        ctx.kernel, ctx.shape, edge = kernel, x.shape, kernel // 2
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, edge, edge, edge, edge))
        a, b, d, e = padded.stride()
        return padded.as_strided((n, s, s, kernel, kernel, c), (a, b, d, b, d, e)).reshape(n * s * s, -1)

    @staticmethod
    def backward(ctx, grad):
        (n, c, s, _), k = ctx.shape, ctx.kernel
        grad, edge = grad.view(n, s, s, k, k, c), k // 2
        out = grad.new_zeros(n, s, s, c)
        for i, j in itertools.product(range(k), repeat=2):
            low, left = i - edge, j - edge  # pixel (y, x) was read as neighbour (i, j) of (y - low, x - left)
            rows, columns = slice(max(low, 0), s + min(low, 0)), slice(max(left, 0), s + min(left, 0))
            back = slice(max(-low, 0), s + min(-low, 0)), slice(max(-left, 0), s + min(-left, 0))
            out[:, rows, columns] += grad[:, back[0], back[1], i, j]
        return out.permute(0, 3, 1, 2), None


class SmallConv(nn.Conv2d):
    """A convolution on a map of `side` x `side`, in channels_last, as one matrix product: over columns, or
    where most of its entries are not zero with a dense matrix from a picture's inputs to its outputs."""

    def __init__(self, inputs, outputs, kernel, side):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        pixels, edge = list(itertools.product(range(side), repeat=2)), kernel // 2
        pick = torch.zeros(len(pixels) ** 2, kernel * kernel)  # which weight joins an output to an input
        for row, ((oy, ox), (iy, ix)) in enumerate(itertools.product(pixels, pixels)):
            if abs(iy - oy) <= edge and abs(ix - ox) <= edge:
                pick[row, (iy - oy + edge) * kernel + ix - ox + edge] = 1
        self.dense = bool(pick.mean() * kernel * kernel > 0.7)
        self.register_buffer("pick", pick)

    def forward(self, x):
        n, c, s, _ = x.shape
        weight = self.weight.permute(0, 2, 3, 1).flatten(1, 2)  # [outputs, k * k, inputs]
        if not self.dense:
            y = F.linear(Columns.apply(x, self.kernel_size[0]), weight.flatten(1), self.bias)
            return y.view(n, s, s, -1).permute(0, 3, 1, 2)
        matrix = torch.matmul(self.pick, weight).view(len(weight), s * s, s * s * c)
        y = F.linear(x.permute(0, 2, 3, 1).reshape(n, -1), matrix.transpose(0, 1).flatten(0, 1))
        return (y.view(n, s, s, -1) + self.bias).permute(0, 3, 1, 2)


class FirstConv(nn.Conv2d):
    """A strided convolution of pictures, which need no gradient, as one matrix product over windows."""

    def forward(self, x):
        n, c, (stride, _), (k, _) = len(x), x.shape[1], self.stride, self.kernel_size
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *self.padding * 2))
        a, b, d, _ = padded.stride()
        side = (padded.shape[1] - k) // stride + 1
        windows = padded.as_strided((n, side, side, k, k * c), (a, stride * b, stride * d, b, 1))
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        y = F.linear(windows.reshape(n * side * side, -1), weight, self.bias)
        return y.view(n, side, side, -1).permute(0, 3, 1, 2)


class GhostNorm(nn.BatchNorm2d):
    """Batch norm over groups of 32 samples, in operations that the compiler fuses or as one call a group."""

    def forward(self, x):
        if not torch.compiler.is_compiling():
            return torch.cat([super(GhostNorm, self).forward(part) for part in x.split(32)])
        groups = x.unflatten(0, (-1, 32)).float()
        var, mean = torch.var_mean(groups, (1, 3, 4), correction=0, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(0).flatten(), self.momentum)
            self.running_var.lerp_(var.mean(0).flatten(), self.momentum)
        out = (groups - mean) * torch.rsqrt(var + self.eps)
        out = out * self.weight.view(1, 1, -1, 1, 1) + self.bias.view(1, 1, -1, 1, 1)
        return out.to(x.dtype).flatten(0, 1)


class Batches:
    """Batches cut from padded pictures in memory, in `dtype` and channels_last."""

    def __init__(self, data, device, dtype):
        inputs, self.labels = (t.to(device) for t in data)
        self.dtype = dtype
        padded = F.pad(inputs, (0, 0, PAD, PAD, PAD, PAD))
        n, _, width, channels = padded.shape
        steps = padded.stride()
        self.count, self.wide = n, SIDE * channels
        shape = (n, 2 * PAD + 1, 2 * PAD + 1, SIDE, self.wide)  # every window, as strides
        self.windows = padded.as_strided(shape, (steps[0], steps[1], steps[2], steps[1], 1))
        self.scale = (1 / (255 * torch.tensor(STD))).to(device)
        self.shift = (torch.tensor(MEAN) / torch.tensor(STD)).to(device)

    def __call__(self, rows):
        """rows: int64 [n] -> [n, 3, 32, 32], labels [n]."""
        top, left = torch.randint(0, 2 * PAD + 1, (2, len(rows)), device=rows.device)
        flip = torch.rand(len(rows), device=rows.device) < 0.5
        x = self.windows[rows, top, left].view(len(rows), SIDE, SIDE, 3)
        x = torch.where(flip[:, None, None, None], x.flip(2), x)
        x = (x * self.scale - self.shift).to(self.dtype)
        return x.permute(0, 3, 1, 2), self.labels[rows]


def by_hand(model: str, batch: int, data, device, ghost: bool = False, dtype=torch.bfloat16):
    """One step after the other: batched data, bf16 (or float32), channels_last, fused SGD; ResNet-20
    compiled; on a CPU passes of at most MICRO images, and products of matrices where they are faster."""
    cpu, compiled, full = device == "cpu", model == "resnet" or device != "cpu", dtype == torch.float32

    def conv(inputs, outputs, kernel, stride=1, bias=False, side=None):
        if cpu and side and side <= (2 if full else 4):
            return SmallConv(inputs, outputs, kernel, side)
        if cpu and stride == 4 and not full:
            return FirstConv(inputs, outputs, kernel, stride, kernel // 2)
        return plain(inputs, outputs, kernel, stride, bias)

    net = NETWORKS[model](conv, GhostNorm if ghost else nn.BatchNorm2d)
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), fused=True, **SGD)
    forward = torch.compile(net, dynamic=False, mode=None if cpu else "reduce-overhead") if compiled else net
    batches, micro = Batches(data, device, dtype), min(batch, MICRO) if cpu else batch
    while True:
        order = torch.randperm(batches.count, device=device)
        for rows in order[: len(order) // batch * batch].split(batch):
            optimizer.zero_grad(set_to_none=True)
            total = 0
            for part in rows.split(micro):
                x, y = batches(part)
                with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                    outputs = forward(x)
                loss = F.cross_entropy(outputs.float(), y, reduction="sum") / batch
                loss.backward()
                total = total + loss.detach()
            optimizer.step()
            yield total
