"""Samples by position: every sample once an epoch, any cut the same, any kind of source the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import resolved

from adabatch import draws
from adabatch.data.augment import Augment, Prepare
from adabatch.data.resident import resident
from adabatch.data.samples import MapSamples, Samples, Subset, TensorSamples, as_samples
from adabatch.data.stream import Stream
from adabatch.errors import UserError

N = 37  # a prime: no batch size divides it


def tensors(n=N):
    """n different pictures; the label is the index."""
    inputs = torch.randint(
        0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return inputs, torch.arange(n)


def stream(n=N, seed=0, samples=None, augment=True):
    varied = Augment(2, "zeros", True, 2) if augment else None
    prepare = Prepare("cpu", mean=[0.5] * 3, std=[0.25] * 3, augment=varied)
    return Stream(samples or TensorSamples(*tensors(n)), prepare, seed)


batches = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(batches, st.integers(1, 50), st.integers(0, 2**64 - 1))
def test_any_sequence_of_batch_sizes_visits_each_sample_once_an_epoch(sizes, n, seed):
    source = stream(n, seed, augment=False)
    sizes = [min(size, n) for size in sizes]
    sizes.append(-sum(sizes) % n)  # fill the last epoch
    seen, position = [], 0
    for size in filter(None, sizes):
        seen += source.batch(position, position + size)[1].tolist()
        position += size
    assert position % n == 0
    for epoch in range(position // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 5 * N), st.lists(st.integers(1, N), min_size=2, max_size=5))
def test_any_cut_gives_the_same_bits_also_after_a_resume(start, sizes):
    stop = start + sum(sizes)
    inputs, labels = stream().batch(start, stop)
    parts, position = [], start
    for size in sizes:  # a new object each: nothing carries over from what was asked before
        parts.append(stream().batch(position, position + size))
        position += size
    assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)
    one = stream()
    backwards = [one.batch(p, p + 1) for p in reversed(range(start, stop))]  # ranks ask in any order
    assert torch.equal(torch.cat([x for x, _ in reversed(backwards)]), inputs)


def test_a_sample_is_fixed_by_seed_and_position():
    """Against the definition, sample by sample."""
    source, (inputs, _), seed = stream(seed=5), tensors(), 5
    x, y = source.batch(0, 3 * N)
    for position in range(3 * N):
        epoch, place = divmod(position, N)
        index = draws.permutation(draws.key(seed, draws.ORDER, epoch), N)[place]
        key = draws.bits(draws.key(seed, draws.AUGMENT), position)
        assert y[position] == index
        assert torch.equal(x[position], source.prepare(inputs[index][None], torch.tensor([key]))[0])


def test_epochs_and_seeds_differ_in_order_and_augmentation():
    source = stream()
    orders = [tuple(source.order.epoch(e).tolist()) for e in range(4)] + [
        tuple(stream(seed=1).order.epoch(0).tolist())
    ]
    assert len(set(orders)) == 5
    x, y = source.batch(0, 2 * N)
    first, second = x[:N][y[:N].argsort()], x[N:][y[N:].argsort()]  # the same sample in two epochs
    different = [not torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert sum(different) > 0.9 * N


def test_positions_beyond_2_to_the_40():
    position = 2**40 + 11
    x, y = stream().batch(position, position + 8)
    assert torch.equal(x[3:5], stream().batch(position + 3, position + 5)[0])
    assert not torch.equal(stream().keys(11, 19), stream().keys(position, position + 8))


class Map:
    """A map-style dataset."""

    def __init__(self, n=N):
        self.inputs, self.labels = tensors(n)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        assert isinstance(index, int)
        return self.inputs[index], int(self.labels[index])


def test_every_kind_of_source_gives_the_same():
    inputs, labels = tensors(2 * N)
    odd = torch.arange(1, 2 * N, 2)
    kinds = [
        TensorSamples(inputs[odd], labels[odd]),
        Subset(TensorSamples(inputs, labels), odd),
        Subset(MapSamples(Map(2 * N)), odd),
        MapSamples(torch.utils.data.Subset(Map(2 * N), odd.tolist())),
        Subset(Subset(TensorSamples(inputs, labels), torch.arange(1, 2 * N)), odd - 1),
    ]
    expected = stream(samples=kinds[0]).batch(20, 60)
    for samples in kinds[1:]:
        found = stream(samples=samples).batch(20, 60)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(kinds[1].labels, labels[odd]) and kinds[2].labels is None


def test_as_samples():
    inputs, labels = tensors()
    pair = as_samples((inputs.numpy(), labels.tolist()))
    assert isinstance(pair, TensorSamples) and torch.equal(pair.inputs, inputs)
    assert isinstance(as_samples(Map()), MapSamples)
    assert as_samples(pair) is pair
    with pytest.raises(UserError, match="got int"):
        as_samples(5)
    with pytest.raises(UserError, match="37 inputs and 36 labels"):
        as_samples((inputs, labels[1:]))


class Disk(Samples):
    """Notes what it was asked for."""

    def __init__(self, n, look_ahead):
        self.n, self.look_ahead, self.reads, self.hints, self.closed = n, look_ahead, [], [], False

    def __len__(self):
        return self.n

    def read(self, indices, keys=None):
        self.reads.append((indices.tolist(), keys.tolist()))
        return torch.zeros(len(indices), 3, 6, 6, dtype=torch.uint8), indices

    def expect(self, indices, keys=None):
        self.hints.append((indices.tolist(), keys.tolist()))

    def close(self):
        self.closed = True


@pytest.mark.parametrize("ahead", [1, 10, 2 * N + 3])
def test_hints_name_what_is_read_next(ahead):
    disk, plain = Disk(N, ahead), stream()
    source, position = stream(samples=disk), 0
    for size in (5, 20, 30, 2):
        source.batch(position, position + size)
        position += size
        hinted = slice(position, position + ahead)
        expected = (
            plain.indices(hinted.start, hinted.stop).tolist(),
            plain.keys(hinted.start, hinted.stop).tolist(),
        )
        assert disk.hints[-1] == expected
    read_indices = [i for indices, _ in disk.reads for i in indices]
    read_keys = [k for _, keys in disk.reads for k in keys]
    assert (
        read_indices == plain.indices(0, position).tolist() and read_keys == plain.keys(0, position).tolist()
    )


def test_hints_reach_through_a_subset_and_are_not_asked_for_in_vain():
    disk = Disk(2 * N, 4)
    source = stream(samples=Subset(disk, torch.arange(N) + N))
    source.batch(0, 3)
    assert disk.hints[0][0] == (source.indices(3, 7) + N).tolist()
    source.samples.close()
    assert disk.closed
    silent = Disk(N, 0)
    stream(samples=silent).batch(0, 3)
    assert silent.hints == []


def test_permutations_are_not_computed_again_for_every_batch(monkeypatch):
    asked, real = [], draws.permutation
    monkeypatch.setattr(draws, "permutation", lambda key, count: asked.append(key) or real(key, count))
    source = stream(samples=Disk(N, 10))
    for position in range(0, 4 * N, 8):
        source.batch(position, position + 8)
    assert len(asked) == len(set(asked)) == 5  # four epochs, and the next one for the last hints


class Recorder(TensorSamples):
    """Writes down what is read and what is expected."""

    look_ahead = 25

    def read(self, indices, keys=None):
        self.seen += zip(indices.tolist(), keys.tolist(), strict=True)
        return super().read(indices, keys)

    def expect(self, indices, keys=None):
        self.expected = list(zip(indices.tolist(), keys.tolist(), strict=True))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3 * N), st.integers(1, 40), st.integers(1, 5), st.data())
def test_what_is_expected_is_what_a_rank_reads_next(start, batch, world, data):
    rank, micro = data.draw(st.integers(0, world - 1)), data.draw(st.integers(1, 10))
    samples = Recorder(*tensors())
    source, hints = stream(samples=samples, augment=False), []
    samples.seen = []
    first, last = batch * rank // world, batch * (rank + 1) // world
    for begin in range(start, start + 30 * batch, batch):
        source.share(begin + first, begin + last, batch)
        for row in range(first, last, micro):
            source.batch(begin + row, begin + min(row + micro, last))
            hints.append((len(samples.seen), samples.expected))
    checked = [(done, hint) for done, hint in hints if done + 25 <= len(samples.seen)]
    assert checked or last - first == 0
    for done, hint in checked:
        assert hint == samples.seen[done : done + 25]


def test_looking_at_other_positions_expects_nothing():
    """Before anything is said of a share, all that follows is expected."""
    samples = Recorder(*tensors())
    samples.seen, samples.expected = [], None
    source = stream(samples=samples, augment=False)
    source.batch(8, 12)
    hint = samples.expected
    samples.seen.clear()
    source.batch(12, 37)
    assert hint == samples.seen
    source.share(20, 24, 8)
    for start, stop in ((8, 12), (16, 20), (24, 26), (22, 25)):
        samples.expected = None
        source.batch(start, stop)
        assert samples.expected is None
    source.batch(20, 22)
    assert len(samples.expected) == 25


# -- alternating flips -----------------------------------------------------------------------------


def alternating(n=N, seed=0, laid_out=False):
    """A stream of pictures whose only variation is the alternating flip; prepared pixels are 0 to 1."""
    prepare = Prepare("cpu", augment=Augment(flip="alternate"))
    samples = TensorSamples(*tensors(n))
    source, rest = resident(samples, prepare) if laid_out else (samples, prepare)
    return Stream(source, rest, seed, alternate=True)


def mirrored(source, start, stop):
    """{(sample, epoch): whether it was mirrored} of the positions start <= p < stop, told by its pixels."""
    inputs, _ = tensors(len(source))
    found, (x, labels) = {}, source.batch(start, stop)
    for position, (picture, label) in enumerate(zip(x, labels.tolist()), start):
        plain = inputs[label].float() / 255
        turned = torch.from_numpy(plain.numpy()[..., ::-1].copy())
        same, other = torch.equal(picture, plain), torch.equal(picture, turned)
        assert same != other
        found[label, position // len(source)] = other
    return found


@pytest.mark.parametrize("laid_out", [False, True])
def test_every_picture_is_mirrored_in_exactly_one_of_two_successive_epochs(laid_out):
    found = mirrored(alternating(laid_out=laid_out), 0, 5 * N)
    assert len(found) == 5 * N
    for (sample, epoch), side in found.items():
        assert found.get((sample, epoch + 1), not side) != side
    assert 8 < sum(found[sample, 0] for sample in range(N)) < N - 8, "by chance at first"
    other = mirrored(alternating(seed=1), 0, N)
    assert 8 < sum(other[sample, 0] != found[sample, 0] for sample in range(N)) < N - 8


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 5 * N), st.lists(st.integers(1, N), min_size=1, max_size=4))
def test_which_pictures_are_mirrored_does_not_depend_on_the_batches(start, sizes):
    whole, position, parts = mirrored(alternating(), start, start + sum(sizes)), start, {}
    for size in sizes:
        parts |= mirrored(alternating(laid_out=True), position, position + size)
        position += size
    assert parts == whole


def test_alternating_leaves_every_other_draw_what_it_was():
    def batch(flip):
        prepare = Prepare("cpu", augment=Augment(2, "reflect", flip, 2))
        return Stream(TensorSamples(*tensors()), prepare, 3, alternate=flip == "alternate").batch(0, N)[0]

    chance, alternate, never = (batch(flip) for flip in (True, "alternate", False))
    cut = [(x == 0).all(1) for x in (chance, alternate, never)]
    assert torch.equal(cut[0], cut[1]) and torch.equal(cut[0], cut[2])
    assert not torch.equal(chance, alternate) and not torch.equal(alternate, never)
    keys, marked = (Stream(TensorSamples(*tensors()), None, 3, alternate=a).keys(0, N) for a in (False, True))
    assert torch.equal(marked % 2**32, keys) and set((marked >> 32).tolist()) == {0, 1}


def test_an_unknown_kind_of_flip_is_refused():
    with pytest.raises(UserError, match="got 'alternat'. Did you mean 'alternate'"):
        Augment(flip="alternat")
    with pytest.raises(UserError, match="flip is true, false or alternate, got 'sometimes'"):
        resolved("dataset.augment.flip=sometimes")
    assert resolved("dataset.augment.flip=alternate")["dataset"]["augment"]["flip"] == "alternate"
