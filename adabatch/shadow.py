"""Shadow controllers: what every other rule would have chosen along the run that is being trained.

A shadow is a whole schedule with its own batch, cap, dwell and memory (its *virtual* state), fed with the
noise measured at the weights that the driving schedule visits. It never touches training: the driver's
measurement is shared where it says what the shadow needs, otherwise passes of its own are made and thrown
away. What it says of is the recommendation at these states; nothing about the error, the speed or the
trajectory that the rule would have had by itself.
"""

import copy
from dataclasses import replace

from adabatch.schedules.setting import Observation


class Shadows:
    """schedules: {name: Schedule}. meter: makes a Meter for a schedule that measures. step: makes the passes.
    shared: whether the driver measures as a schedule does (same groups and metric)."""

    def __init__(self, schedules: dict, step, meter, shared):
        self.schedules, self.step = schedules, step
        self.shared = {name: shared(s) for name, s in schedules.items()}
        self.meters = {}
        for name, s in schedules.items():
            if s.needs & {"trace", "sq_norm", "per_sample"}:
                self.meters[name] = self._alike(meter(s))

    def _alike(self, meter):
        """One meter for shadows that measure alike, so that they share passes."""
        key = (meter.size, meter.differenced, meter.metric is None)
        known = {(m.size, m.differenced, m.metric is None): m for m in self.meters.values()}
        return known.get(key, meter)

    def measure(self, start: int, setting, driver: frozenset) -> dict:
        """{name: Noise} for shadows that need passes of their own at this step. driver: what it measures."""
        due: dict = {}
        for name, s in self.schedules.items():
            needs = s.measures(start, setting) - {"loss"}
            if needs and name in self.meters and not (self.shared[name] and needs <= driver):
                due.setdefault(id(self.meters[name]), []).append((name, needs))
        found = {}
        for wanted in due.values():
            needs = frozenset().union(*(needs for _, needs in wanted))
            noise = self.step.probe(start, setting, needs, self.meters[wanted[0][0]])
            found |= {name: noise for name, _ in wanted}
        return found

    def observe(self, start: int, setting, loss, noise, own: dict) -> dict:
        """Tell each shadow of the finished step; what they choose, as fields of the step's row. noise: the
        driver's; own: from `measure`."""
        row = {}
        for name, s in self.schedules.items():
            virtual, due = s(start), s.measures(start, setting)
            heard = own.get(name, noise if self.shared[name] else None) if due else None
            asked = loss if "loss" in due else None
            # It trains its own batches in thought, and as many samples as really pass.
            s.observe(Observation(start, replace(virtual, batch_size=setting.batch_size), asked, heard))
            if due or not s.needs - {"validation"}:
                row[f"shadow.{name}.batch_size"], row[f"shadow.{name}.lr"] = virtual.divisor, virtual.lr
                row |= {f"shadow.{name}.{k}": v for k, v in s.figures().items() if k in ("wish", "gained")}
        return row

    def needs(self, start: int, setting) -> frozenset:
        """What of the step itself (its loss) some shadow wants to know."""
        wanted = [s.measures(start, setting) for s in self.schedules.values()]
        return frozenset().union(*wanted) & {"loss"}

    def evaluated(self, position: int, loss: float, error: float | None) -> None:
        for s in self.schedules.values():
            s.evaluated(position, loss, error)

    def state_dict(self) -> dict:
        return {
            name: [s.state_dict(), self.meters[name].state_dict() if name in self.meters else None]
            for name, s in self.schedules.items()
        }

    def load_state_dict(self, state: dict) -> list[str]:
        """Restores those that are in `state`; returns the names of the others, which begin here."""
        for name, s in self.schedules.items():
            if name in state:
                s.load_state_dict(copy.deepcopy(state[name][0]))
                if name in self.meters:
                    self.meters[name].load_state_dict(state[name][1])
        return [name for name in self.schedules if name not in state]
