"""The batch sampler: the schedule's batches and the order of `adabatch`, from any position, for any rank and
world; settings that belong to the batch in hand; decisions that no worker moves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from adabatch.data.samples import TensorSamples
from adabatch.data.stream import Stream
from adabatch.errors import UserError
from adabatch.noise import Noise
from adabatch.sampler import BatchSampler
from adabatch.schedules import Constant, Rule, Schedule, Steps, closed_loop, walk
from adabatch.schedules.rules import NoiseScale

N = 37  # a prime: no batch size divides it


def growing(samples=N, epochs=3, base_batch=4, **more):
    return Schedule(samples=samples, epochs=epochs, base_batch=base_batch, base_lr=0.1,
                    **{"growth": Steps(2, every=1), "decay": Steps(0.5, every=1)} | more)  # fmt: skip


def trained(sampler):
    """[(start, setting, indices)] of a loop that takes, asks and finishes."""
    found = []
    for indices in sampler:
        found.append((sampler.position, sampler.setting(), indices))
        sampler.finish()
    return found


def test_batches_are_those_of_a_table():
    """Batch 4, 8, 16 from epochs 0, 1, 2 of 10 samples, cut at the budget of 30; a batch keeps the setting of
    its first sample: it straddles the epochs' ends at 10 and 20."""
    schedule = growing(10, growth=Steps(2, every=1), max_batch=8)
    found = trained(BatchSampler(schedule, 10, shuffle=False))
    assert [(p, len(i), s.divisor) for p, s, i in found] == [
        (0, 4, 4), (4, 4, 4), (8, 4, 4), (12, 8, 8), (20, 8, 8), (28, 2, 8)
    ]  # fmt: skip
    assert sum([i for _, _, i in found], []) == 3 * list(range(10))
    # lr = 0.1 * decay * growth: the cap turns the second doubling into decay
    assert [s.lr for _, s, _ in found] == pytest.approx([0.1] * 4 + [0.05, 0.05])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(1, 5), st.integers(0, 3 * N))
def test_the_order_is_that_of_training(seed, world, position):
    """Ranks together yield, in order, what `adabatch` trains on at these positions, with the same seed."""
    schedule = growing()
    stream = Stream(TensorSamples(torch.zeros(N, 1), torch.arange(N)), None, seed)
    ranks = [
        list(BatchSampler(schedule, N, seed, rank, world, position)) if schedule.budget > position else []
        for rank in range(world)
    ]
    expected, start = [], position
    while start < schedule.budget:
        expected.append((start, schedule(start).batch_size))
        start += expected[-1][1]
    assert {len(batches) for batches in ranks} == {len(expected)}
    for (start, size), shares in zip(expected, zip(*ranks)):
        wanted = stream.indices(start, start + size).tolist()
        if size >= world:
            assert sum(shares, []) == wanted
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
        else:
            assert all(len(share) == 1 for share in shares)  # nobody is without a batch


def test_every_sample_once_an_epoch_and_another_order_in_the_next():
    batches = list(BatchSampler(growing(epochs=2, growth=Constant()), N))
    seen = sum(batches, [])
    assert sorted(seen[:N]) == sorted(seen[N:]) == list(range(N)) and seen[:N] != seen[N:]


def test_the_loader_yields_what_the_sampler_says():
    data = TensorDataset(torch.arange(N))
    for workers in (0, 2):
        sampler = BatchSampler(growing(), N, seed=3)
        assert len(DataLoader(data, batch_sampler=sampler)) == len(list(walk(growing())))
        positions = []
        for (x,) in DataLoader(data, batch_sampler=sampler, num_workers=workers):
            setting = sampler.setting()
            assert setting == growing()(sampler.position) and len(x) == setting.batch_size
            positions.append(sampler.position)
            sampler.finish()
        assert positions == [start for start, _, _ in walk(growing())] and sampler.position == 3 * N


def test_nvlabs_drops_the_tail_of_an_epoch():
    """10 samples, batch 4: two batches an epoch and two samples dropped; then batch 8, one an epoch."""
    schedule = growing(10, compat="nvlabs", epochs=2)
    found = trained(BatchSampler(schedule, 10, shuffle=False))
    assert [(p, i) for p, _, i in found] == [(0, [0, 1, 2, 3]), (4, [4, 5, 6, 7]), (10, list(range(8)))]
    assert len(BatchSampler(schedule, 10)) == 3


def test_length_counts_what_remains():
    sampler = BatchSampler(growing(), N)
    total = len(list(walk(growing())))
    assert len(sampler) == total
    for done, _ in enumerate(sampler, 1):
        sampler.setting()
        sampler.finish()
        assert len(sampler) == total - done


def test_tokens_come_in_whole_sequences():
    """12 sequences of 5 tokens; batches of 10 and 20 tokens are 2 and 4 sequences."""
    schedule = growing(60, epochs=2, base_batch=10, multiple=5)
    found = trained(BatchSampler(schedule, 12, shuffle=False, unit=5))
    assert [(p, len(i), s.batch_size) for p, s, i in found[:7]] == [
        *((10 * k, 2, 10) for k in range(6)), (60, 4, 20)
    ]  # fmt: skip
    assert sum([i for _, _, i in found], []) == 2 * list(range(12))
    with pytest.raises(UserError, match="multiple is a multiple of unit=5"):
        BatchSampler(growing(60, base_batch=10), 12, unit=5)
    with pytest.raises(UserError, match="budget is a multiple of unit=5.*got 66"):
        BatchSampler(growing(60, epochs=1.1, base_batch=10, multiple=5), 12, unit=5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="samples=37 in an epoch, and the dataset has 36"):
        BatchSampler(growing(), 36)
    with pytest.raises(UserError, match="got rank=2 of world=2"):
        BatchSampler(growing(), N, rank=2, world=2)
    with pytest.raises(UserError, match="position is .* got -1"):
        BatchSampler(growing(), N, position=-1)
    with pytest.raises(UserError, match="ahead"):
        BatchSampler(growing(), N, ahead=-1)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_gradient_of_all_ranks_is_that_of_one_process(world):
    """Every batch of a run whose batches start at 2 and whose last one holds 1 sample: below the world."""
    torch.manual_seed(0)
    data, targets = torch.randn(N, 3, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    model = torch.nn.Linear(3, 1, dtype=torch.float64)
    schedule = growing(epochs=2, base_batch=2, growth=Steps(3.5, every=1))

    def gradients(sampler):
        for indices in sampler:
            model.zero_grad()
            losses = (model(data[indices]).squeeze(1) - targets[indices]).pow(2)
            (losses.sum() / sampler.setting().divisor).backward()
            sampler.finish()
            yield torch.cat([p.grad.flatten() for p in model.parameters()])

    ranks = [
        torch.stack(list(gradients(BatchSampler(schedule, N, rank=rank, world=world))))
        for rank in range(world)
    ]
    last = list(walk(schedule))[-1]
    assert last[2].batch_size == 1 and last[2].divisor == 7  # cut at the budget; the divisor is not
    stream = Stream(TensorSamples(torch.zeros(N, 1), torch.arange(N)), None, 0)
    for number, (start, _, setting) in enumerate(walk(schedule)):
        indices = stream.indices(start, start + setting.batch_size)
        error = model(data[indices]).squeeze(1) - targets[indices]
        expected = torch.cat([(2 * error[:, None] * data[indices]).sum(0), 2 * error.sum()[None]])
        found = sum(rank[number] for rank in ranks)
        assert torch.allclose(found, expected / setting.divisor, rtol=1e-12, atol=1e-14)


def test_a_rank_without_a_share_counts_for_nothing():
    schedule = growing(epochs=1, base_batch=2, growth=Constant())
    sampler = BatchSampler(schedule, N, rank=0, world=3, shuffle=False)  # 2 samples: ranks 1 and 2 have one
    assert [len(batch) for batch in sampler] == [1] * 19
    next(iter(sampler))
    assert sampler.setting().divisor == math.inf and sampler.setting().batch_size == 2
    other = BatchSampler(schedule, N, rank=1, world=3, shuffle=False)
    assert next(iter(other)) == [0] and other.setting().divisor == 2


# -- the loop's side -----------------------------------------------------------------------------------


def test_forgetting_to_finish_is_found_at_the_second_batch():
    for workers in (0, 2):
        sampler = BatchSampler(growing(), N)
        loader = iter(DataLoader(TensorDataset(torch.arange(N)), batch_sampler=sampler, num_workers=workers))
        next(loader)
        first = sampler.setting()
        assert sampler.setting() == first  # may be asked again for the same batch
        next(loader)
        with pytest.raises(UserError, match="sampler.finish\\(\\) after every optimizer.step"):
            sampler.setting()


def test_a_batch_is_finished_once():
    sampler = BatchSampler(growing(), N)
    with pytest.raises(UserError, match="no batch in hand"):
        sampler.setting()
    with pytest.raises(UserError, match="no batch to finish"):
        sampler.finish()
    data = TensorDataset(torch.arange(N))
    loader = iter(DataLoader(data, batch_sampler=sampler, num_workers=1, prefetch_factor=2))
    next(loader)
    sampler.finish()
    with pytest.raises(UserError, match="once for each"):
        sampler.finish()  # the workers have more in flight, the loop has none


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_goes_on_after_the_last_finished_batch(workers):
    """Not after the last prefetched one; with any other number of workers, rank and world."""
    data = TensorDataset(torch.arange(N))
    whole = trained(BatchSampler(growing(), N, seed=5))
    sampler = BatchSampler(growing(), N, seed=5)
    for number, _ in enumerate(DataLoader(data, batch_sampler=sampler, num_workers=workers)):
        if number == 6:
            break  # in hand, not finished
        sampler.finish()
    state = sampler.state_dict()
    assert state["position"] == whole[6][0]
    again = BatchSampler(growing(), N, seed=5)
    again.load_state_dict(state)
    assert trained(again) == whole[6:]
    assert trained(BatchSampler(growing(), N, seed=5, position=state["position"])) == whole[6:]
    assert trained(sampler) == whole[6:]  # iterated again, it goes on there too
    with pytest.raises(UserError, match="seed=5, and this one has seed=6"):
        BatchSampler(growing(), N, seed=6).load_state_dict(state)


# -- closed loops --------------------------------------------------------------------------------------


class Next(Rule):
    """One sample more after every batch: the batch size tells how many were finished when it was cut."""

    needs = frozenset({"loss"})

    def wish(self, seen):
        return seen.batch + seen.loss


def counting(ahead=0, **more):
    schedule = closed_loop(
        samples=N, epochs=4, growth=Next(), decay=Constant(), base_batch=2, base_lr=0.1, scaling="linear"
    )
    return BatchSampler(schedule, N, ahead=ahead, **more)


def sizes(sampler, workers=0, factor=None, stop=None):
    data = TensorDataset(torch.arange(N))
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, prefetch_factor=factor)
    found = []
    for (x,) in loader:
        setting = sampler.setting()
        assert len(x) == setting.batch_size and setting.lr == pytest.approx(0.05 * setting.divisor)
        found.append((sampler.position, len(x)))
        sampler.finish(loss=1.0)
        if len(found) == stop:
            break
    return found


def by_hand(ahead):
    """Batch k is cut when k - ahead batches are finished, each of which adds 1 to a batch of 2."""
    found, position = [], 0
    while position < 4 * N:
        size = min(2 + max(0, len(found) - ahead), N, 4 * N - position)
        found.append((position, size))
        position += size
    return found


def test_a_decision_holds_from_the_next_batch():
    assert sizes(counting()) == by_hand(0)


@pytest.mark.parametrize("ahead", [4, 6])
def test_workers_do_not_move_a_decision(ahead):
    """With `ahead` batches cut in advance the trajectory is the same for 0, 1 and 2 workers."""
    expected = by_hand(ahead)
    assert sizes(counting(ahead)) == expected
    assert sizes(counting(ahead), workers=2) == expected  # 2 x 2 in flight
    assert sizes(counting(ahead), workers=1, factor=3) == expected


def test_a_loader_that_runs_too_far_ahead_is_told_so():
    with pytest.raises(UserError, match="ahead = num_workers \\* prefetch_factor"):
        sizes(counting(3), workers=2)
    sampler = iter(counting())
    next(sampler)
    with pytest.raises(UserError, match="call sampler.finish"):
        next(sampler)  # the first is not finished


@pytest.mark.parametrize("ahead, before, after", [(0, 0, 0), (4, 2, 2), (4, 2, 0), (5, 0, 2)])
def test_a_closed_loop_resumes_on_the_batches_already_cut(tmp_path, ahead, before, after):
    """Through a file, and with another number of workers."""
    whole = by_hand(ahead)
    first = counting(ahead)
    assert sizes(first, workers=before, stop=5) == whole[:5]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = counting(ahead)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert sizes(second, workers=after) == whole[5:]


def test_decisions_made_by_an_evaluation_hold_at_once():
    """Between two batches, before the loader is asked again, whatever `ahead` is not yet cut."""

    class Evaluated(Rule):
        needs = frozenset({"validation"})

        def wish(self, seen):
            return 10

    for ahead in (0, 2):
        schedule = closed_loop(
            samples=N, epochs=1, growth=Evaluated(), decay=Constant(), base_batch=2, base_lr=0.1
        )
        sampler, found = BatchSampler(schedule, N, ahead=ahead), []
        for batch in sampler:
            found.append(len(batch))
            sampler.finish()
            if len(found) == 3:
                schedule.evaluated(sampler.position, 1.0, 0.5)
        assert found[: 4 + ahead] == [2] * (3 + ahead) + [10]


def test_a_closed_loop_does_not_know_its_length():
    with pytest.raises(TypeError, match="does not know how many"):
        len(counting())


def test_noise_reaches_the_rule():
    """tr(S) = 24, |G|^2 = 1 without scatter: resolved at the fourth measurement, and the batch is 24."""
    schedule = closed_loop(
        samples=200, epochs=1, growth=NoiseScale(), decay=Constant(), base_batch=4, base_lr=0.1
    )
    sampler, found = BatchSampler(schedule, 200), []
    for batch in sampler:
        assert schedule.measures(sampler.position, sampler.setting()) == {"trace", "sq_norm"}
        found.append(len(batch))
        sampler.finish(noise=Noise(len(batch), 2, trace=24.0, sq_norm=1.0))
    assert found[:6] == [4, 4, 4, 4, 24, 24]
