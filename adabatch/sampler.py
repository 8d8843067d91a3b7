"""A schedule in anyone's own loop: a torch batch sampler that follows it.

    sampler = BatchSampler(schedule, len(train), seed=0)
    for x, y in DataLoader(train, batch_sampler=sampler, num_workers=2):
        setting = sampler.setting()      # lr, divisor and size of the batch in hand
        ...                              # loss = sum of the losses of x / setting.divisor
        sampler.finish()

Which samples a batch holds is a function of (seed, position), the same that `adabatch` trains on. A loader
with workers asks for batches long before the loop trains on them, so settings wait here in a queue beside
their batches: the one in hand is never a later one's.

An open-loop batch is a function of its position, however early it is asked for. A closed loop decides while
it trains: a batch is cut when the one `ahead` + 1 places before it was finished, whatever the loader asks
for. Workers then change the speed and nothing else.
"""

import math
from collections import deque
from dataclasses import asdict, replace

from adabatch.data.stream import Order
from adabatch.errors import UserError
from adabatch.noise import Noise
from adabatch.schedules import Observation, Schedule, Setting


class BatchSampler:
    """Yields lists of dataset indices, one per global batch, from `position` to the schedule's budget.

    samples: items in the dataset. seed: of the order. rank, world: this process yields its contiguous share
    of every batch, a sample more or less than the others; each rank yields equally many batches. A rank
    without a share (a batch smaller than the world, as the last one may be) gets the batch's first sample and
    a divisor of infinity, so that its gradient is exactly 0 and nobody waits for it in vain. position: where
    to begin. shuffle: False = the order of the data. unit: positions in one item; 1 = the schedule counts
    items, the length of a sequence = it counts tokens. ahead: batches cut before the one in hand is finished;
    for a closed loop the loader's num_workers * prefetch_factor or more, for an open loop of no effect.

    The loader must keep the order of batches (`in_order`, its default).
    """

    def __init__(
        self,
        schedule: Schedule,
        samples: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
        shuffle: bool = True,
        unit: int = 1,
        ahead: int = 0,
    ):
        if not 0 <= rank < world:
            raise UserError(f"rank is one of 0 to world - 1, got rank={rank} of world={world}")
        if ahead < 0:
            raise UserError(f"ahead is 0 or more batches, got {ahead}")
        if schedule.samples != samples * unit:
            raise UserError(
                f"the schedule was made for samples={schedule.samples} in an epoch, and the dataset has "
                f"{samples} of {unit}: they must be equal (unit is the number of positions in one item, for "
                "tokens the length of a sequence)"
            )
        for name, value in dict(
            multiple=schedule.frame.multiple, budget=schedule.budget, position=position
        ).items():
            if value < 0 or value % unit:
                raise UserError(f"{name} is a multiple of unit={unit}, 0 or more; got {value}")
        self.schedule, self.rank, self.world, self.unit, self.ahead = schedule, rank, world, unit, ahead
        self.order = Order(samples, seed, shuffle)
        self.closed = schedule.measuring is not None or bool(schedule.needs)
        self._finished = self._next = position  # end of the last finished batch; where the next one is cut
        self._cuts: deque[tuple[int, Setting]] = deque()  # (first sample, setting), cut and not finished
        self._served = 0  # how many of these the loader has asked for
        self._asked, self._at_setting, self._at_finish = 0, None, 0  # requests so far, and at these calls
        self._ended = False

    # -- for the loader ----------------------------------------------------------------------------

    def __iter__(self):
        self._served, self._ended, self._at_setting = 0, False, None
        while self._has_next():
            start, setting = self._cuts[self._served]
            self._served += 1
            self._asked += 1
            yield self._indices(start, setting)
        self._ended = True

    def __len__(self) -> int:
        """Batches from here to the end, the one in hand included; reads the schedule once for each. TypeError
        for a closed loop, which does not know."""
        if self.closed:
            raise TypeError("a closed-loop schedule does not know how many batches are to come")
        count, position = 0, self._finished
        while not self.schedule.done(position):
            start = self.schedule.start(position)
            position = start + self.schedule(start).batch_size
            count += 1
        return count

    def _has_next(self) -> bool:
        """Cut as many batches as may be cut now; whether there is one that the loader has not had."""
        wanted = self.ahead + 1 if self.closed else self._served + 1
        while len(self._cuts) < wanted and not self.schedule.done(self._next):
            start = self.schedule.start(self._next)
            setting = self.schedule(start)
            self._cuts.append((start, setting))
            self._next = start + setting.batch_size
        if self._served < len(self._cuts):
            return True
        if self.schedule.done(self._next):
            return False
        raise UserError(
            f"the loader asks for batch {self._served + 1} before the first of these is finished, and "
            f"ahead={self.ahead}: call sampler.finish() after every optimizer.step(), and give BatchSampler "
            "ahead = num_workers * prefetch_factor of the loader (a closed-loop decision holds from the "
            "first batch that is not yet cut)"
        )

    def _share(self, setting: Setting) -> tuple[int, int]:
        """This rank's items of a batch, counted from its first."""
        items = setting.batch_size // self.unit
        return items * self.rank // self.world, items * (self.rank + 1) // self.world

    def _indices(self, start: int, setting: Setting) -> list[int]:
        first, (a, b) = start // self.unit, self._share(setting)
        return self.order.indices(first + a, first + max(b, a + 1)).tolist()

    # -- for the loop ------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The first sample of the batch in hand; between batches, the end of the last one finished."""
        return self._cuts[0][0] if self._served else self._finished

    def setting(self) -> Setting:
        """Under which the batch in hand was cut. The gradient of the whole batch is the sum over all ranks of
        the gradients of their losses, summed over samples and divided by `divisor`."""
        if not self._served:
            raise UserError("there is no batch in hand: take one from the loader before its setting")
        if self._at_setting not in (None, self._asked):
            raise UserError(
                "the loader has gone on and the batch before was not finished: call sampler.finish() after "
                "every optimizer.step()"
            )
        self._at_setting = self._asked
        setting = self._cuts[0][1]
        a, b = self._share(setting)
        return replace(setting, divisor=math.inf) if a == b else setting

    def finish(self, loss: float | None = None, noise: Noise | None = None) -> None:
        """The batch in hand is trained: the position moves on and the schedule observes. loss: mean over the
        global batch; noise: of its gradient; both as `schedule.measures(sampler.position, setting)` asks, and
        equal on every rank."""
        if not self._served or (self._asked == self._at_finish and not self._ended):
            raise UserError("there is no batch to finish: finish() is called once for each")
        start, setting = self._cuts.popleft()
        self._served -= 1
        self._finished = start + setting.batch_size
        self._at_setting, self._at_finish = None, self._asked
        self.schedule.observe(Observation(start, setting, loss, noise))

    def state_dict(self) -> dict:
        """After the last finished batch, whatever the loader has fetched: plain values, equal on all ranks,
        and good for any other rank, world and number of workers. The schedule's own state is inside."""
        cuts = [[start, asdict(setting)] for start, setting in self._cuts] if self.closed else []
        state = dict(position=self._finished, cuts=cuts, schedule=self.schedule.state_dict())
        return state | self._identity()

    def load_state_dict(self, state: dict) -> None:
        """Before the loader is iterated. UserError: a state of another order of samples."""
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"this state is of a sampler with {name}={state[name]}, and this one has {name}={value}: "
                    "another order of samples"
                )
        self._finished = self._next = state["position"]
        self._cuts = deque(
            (start, Setting(**setting | {"stage": tuple(setting["stage"])}))
            for start, setting in state["cuts"]
        )
        if self._cuts:
            start, setting = self._cuts[-1]
            self._next = start + setting.batch_size
        self._served, self._ended, self._at_setting = 0, False, None
        self.schedule.load_state_dict(state["schedule"])

    def _identity(self) -> dict:
        return dict(
            samples=self.order.count, unit=self.unit, seed=self.order.seed, shuffle=self.order.shuffle
        )
