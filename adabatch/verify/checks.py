"""Which runs are made, and how each is compared with which."""

from adabatch import checkpoint, sanity
from adabatch.errors import UserError
from adabatch.verify import comparing, data
from adabatch.verify.check import KINDS, Check
from adabatch.verify.cuts import micro_batches
from adabatch.verify.processes import Made, Processes
from adabatch.verify.promises import AMPLIFIED, PARTED, PROMISES, gradient_bound, promised
from adabatch.verify.recorded import Recorded, read
from adabatch.verify.rows import unlike_rows

NUDGED = "reference fp64, nudged"


class Failed(Exception):
    """A run that did not do what it was started for; the message says why."""


class Verification:
    """config: the user's, checked. worlds: numbers of processes beside one. micros: micro-batches, None =
    chosen here. only: of KINDS."""

    def __init__(self, processes: Processes, config: dict, worlds: list[int], micros, only):
        self.processes, self.config, self.only = processes, config, only
        self.worlds, self.micros = [w for w in worlds if w > 1], micros
        self.precision = config["hardware"].get("precision", "fp32")
        self.seen: list[tuple[str, Recorded]] = []
        self.made: dict[str, Made] = {}
        self.earlier: dict[str, str] = {}  # which run another went on from
        self.begun: dict[str, int] = {}  # where a run, or the going on of one, took its first step
        self.no_float64 = None  # why not

    def checks(self) -> list[Check]:
        """All of them. UserError: the command itself was refused."""
        try:
            reference = self.run("reference")
        except Failed as error:
            return [Check("reference", None, 0.0, False, str(error))]
        self.meta, self.references = reference.meta, {self.precision: reference}
        if self.only is None or {"micro-batch", "processes"} & set(self.only):
            self.micros = self.micros or micro_batches(reference)
        rows = []
        for kind, work in zip(KINDS, (self.twice, self.killed, self.cut, self.worlds_, self.elastic)):
            if self.only is None or kind in self.only:
                rows += work()
        expected = self.processes.expected(self.config, self.meta["samples"])
        held = bool(self.config["schedule"].get("hold"))
        general = [data.schedule(self.seen, expected, held), data.order(self.seen, expected)]
        return general + [data.inputs(self.seen, self.references), data.norms(self.meta)] + rows

    # -- runs --------------------------------------------------------------------------------------

    def run(self, name: str, *overrides: str, after: str | None = None, **more) -> Recorded:
        """A run that reached its end, as recorded. after: the killed run that it goes on from. Failed: it
        did not."""
        made = self.processes.run(name, *overrides, going_on=self.made.get(after), **more)
        if made.failure:
            raise Failed(made.failure)
        self.made[name] = made
        if after:
            self.earlier[name] = after
        found = self.written(name)
        found.meta["claims_ghost"] = self.config["model"].get("norm") in sanity.GHOST
        self.seen.append((name, found))
        return found

    def kill(self, name: str, *overrides: str, twice: bool = False) -> None:
        """A run that kills itself once a step under the changed batch is done; made once. twice: also
        before the change, so that a sitting begins on either side of it."""
        if name in self.made:
            return
        steps = self.references[self.precision].steps
        changes = [i for i, step in enumerate(steps) if step.divisor != steps[0].divisor]
        count = max(1, min(changes[0] + 1 if changes else len(steps) // 2, len(steps) - 1))
        earlier = None
        if twice and count > 2:
            earlier = self.struck(f"{name} before the change", count - 2, None, *overrides)
            self.earlier[name] = f"{name} before the change"
        self.struck(name, 2 if earlier else count, earlier, *overrides)

    def struck(self, name: str, count: int, earlier: Made | None, *overrides: str) -> Made:
        """A run, or the going on of one, that has killed itself after `count` steps. Failed: it has not."""
        made = self.processes.run(name, *overrides, kill_after=count, going_on=earlier)
        if made.code == 0 or not (made.folder / "checkpoint.pt").exists():
            raise Failed(made.failure or f"it was to kill itself after {count} steps and came to its end")
        self.made[name] = made
        return made

    def written(self, name: str) -> Recorded:
        """What the witnesses of a run wrote, those of earlier sittings included. Failed: nothing."""
        try:
            found = read(self.made[name].witness)
        except (ValueError, OSError) as error:
            raise Failed(str(error)) from None
        self.begun[name] = found.steps[0].start if found.steps else 0
        return found.after(self.written(self.earlier[name])) if name in self.earlier else found

    def in_float64(self) -> Recorded | None:
        """The reference in float64; None where this network cannot be run in it."""
        if "fp64" not in self.references and self.no_float64 is None:
            try:
                self.references["fp64"] = self.run("reference fp64", "hardware.precision=fp64")
            except (Failed, UserError) as error:
                self.no_float64 = f"it cannot be run in float64 ({str(error).splitlines()[-1][:120]})"
        return self.references.get("fp64")

    # -- rows --------------------------------------------------------------------------------------

    def twice(self) -> list[Check]:
        return [self.bitwise("the same command twice", "same", "reference", lambda name: self.run(name))]

    def killed(self) -> list[Check]:
        def work(name):
            self.kill("killed", twice=True)
            return self.run(name, after="killed")

        return [self.bitwise("killed twice and resumed", "resumed", "reference", work)]

    def cut(self) -> list[Check]:
        """Other micro-batches: weights in float64, one in the user's own precision by its gradient."""
        if not self.micros:
            text = "a batch is one ghost group: there is no other micro-batch"
            return [Check("another micro-batch", None, None, True, text)]
        named = [(f"micro-batch {m}", f"hardware.micro_batch={m}") for m in self.micros]
        return self.otherwise(named)

    def worlds_(self) -> list[Check]:
        """Several processes; under reduction=ordered the same bits as one."""
        named = [(f"{w} processes", f"hardware.processes={w}") for w in self.worlds]
        rows = self.otherwise(named)
        if self.config["hardware"].get("reduction") != "ordered" or not named:
            return rows
        micro = f"hardware.micro_batch={(self.micros or [self.meta['micro_batch']])[0]}"
        try:
            self.run("ordered, 1 process", micro)
        except Failed as error:
            return [*rows, Check("ordered, 1 process", None, 0.0, False, str(error))]
        for name, line in named:
            work = lambda row, line=line: self.run(row, micro, line)  # noqa: E731
            rows.append(self.bitwise(f"ordered, {name}", "ordered", "ordered, 1 process", work, rows=False))
        return rows

    def elastic(self) -> list[Check]:
        """Killed with several processes, resumed with others."""
        if not self.worlds:
            return []
        first, *others = self.worlds
        if self.in_float64() is None:
            return []  # the rows of other numbers of processes compare gradients instead
        precision = ["hardware.precision=fp64"]
        begun, failure = f"killed with {first} processes", None
        try:
            self.kill(begun, f"hardware.processes={first}", *precision)
        except Failed as error:
            failure = str(error)
        rows = []
        for world in (1, *others):
            name = f"{begun}, resumed with {world}"
            if failure:
                bound = promised("cut", self.meta)[0]
                rows.append(Check(name, None, bound, False, failure))
                continue
            work = lambda row, w=world: self.run(  # noqa: E731
                row, f"hardware.processes={w}", *precision, after=begun
            )
            rows.append(self.weights(name, work))
        return rows

    def otherwise(self, named: list[tuple[str, str]]) -> list[Check]:
        """Rows of runs that cut the batch otherwise: (name, override) each."""
        rows, whole = [], self.in_float64()
        if self.precision != "fp64":
            for name, line in named[: 1 if whole else None]:
                rows.append(self.gradient(f"{name}, {self.precision}: gradient of one step", line))
        for name, line in named if whole else ():
            lines = ("hardware.precision=fp64", line)
            work = lambda row, lines=lines: self.run(row, *lines)  # noqa: E731
            rows.append(self.weights(f"{name}, fp64", work))
        return rows

    # -- comparisons -------------------------------------------------------------------------------

    def bitwise(self, name: str, kind: str, to: str, work, rows: bool = True) -> Check:
        """The same bits as the run `to`. work(name): makes the run. rows: metrics and summary too."""
        bound, why = promised(kind, self.meta)
        try:
            theirs = work(name)
        except Failed as error:
            return Check(name, None, bound, False, str(error))
        ours = dict(self.seen)[to]
        far, tensor = comparing.difference(self.weights_of(name), self.weights_of(to))
        parted = comparing.parting(ours, theirs, 0.0)
        said = None if not rows else unlike_rows(self.made[to], self.made[name])
        position = comparing.weights_part(ours, theirs, 0.0)
        if bound is None:
            return Check(name, far, None, True, why, position)
        passed = far == 0 and parted is None and said is None
        reason = None if passed else self.reason(parted, tensor, theirs) if parted or far else said
        return Check(name, far, bound, passed, reason, position)

    def weights(self, name: str, work) -> Check:
        """Weights after the run within the promise of float64."""
        bound, why = promised("cut", self.meta)
        try:
            theirs = work(name)
        except Failed as error:
            return Check(name, None, bound, False, str(error))
        ours, to = self.references["fp64"], "reference" if self.precision == "fp64" else "reference fp64"
        far, tensor = comparing.difference(self.weights_of(name), self.weights_of(to))
        position = comparing.weights_part(ours, theirs, PARTED if bound is None else bound)
        if bound is None:
            return Check(name, far, None, True, why, position)
        note, parted = None, comparing.parting(ours, theirs, bound / 10)
        if (
            far > bound
            and (nudged := self.nudged())
            and comparing.within(ours, theirs, nudged, bound, AMPLIFIED)
        ):
            bound = max(
                bound, AMPLIFIED * comparing.difference(self.weights_of(NUDGED), self.weights_of(to))[0]
            )
            note = "promised: what rounding comes to in this network, from weights nudged by one"
        passed = far <= bound and (parted is None or parted.stage not in (*comparing.DATA, "rate", "ranks"))
        return Check(
            name, far, bound, passed, note if passed else self.reason(parted, tensor, theirs), position
        )

    def nudged(self) -> Recorded | None:
        """A run in float64 from initial weights that are each off by one rounding; None: it failed. It is no
        run of the user's: a closed loop may decide otherwise in it."""
        if NUDGED not in self.made:
            self.made[NUDGED] = self.processes.run(NUDGED, "hardware.precision=fp64", nudge=True)
        return None if self.made[NUDGED].failure else self.written(NUDGED)

    def gradient(self, name: str, line: str) -> Check:
        """The gradient of one step from equal state, that of the killed run's checkpoint, which one process
        of the user's own precision wrote; the step lies behind the change of batch."""
        bound, why = promised("gradient", self.meta)
        if bound is not None:
            bound = gradient_bound(self.own_error())
        try:
            self.kill("killed", twice=True)
            theirs = self.run(name, line, after="killed")
        except Failed as error:
            return Check(name, None, bound, False, str(error))
        ours, begin = self.references[self.precision], self.begun[name]
        a, b = (next((s for s in run.steps if s.start == begin), None) for run in (ours, theirs))
        if a is None:
            text = f"schedule: a step starts at {begin:,}, where the reference has none"
            return Check(name, None, bound, False, text, begin)
        far, tensor = comparing.worst_gradient(ours, a, b)
        far = comparing.relative(b.norms, a.norms) if far is None else far
        position = comparing.weights_part(ours, theirs, PARTED)
        if bound is None:
            return Check(name, far, None, True, why, position)
        found = comparing.of_data(a, b) or comparing.of_step(ours, a, b, bound)
        note = f"{self.no_float64}: compared by a gradient" if self.no_float64 else None
        if not note and bound > PROMISES["gradient"].bound:
            note = f"promised: twice {self.precision}'s own error on this network, against float64"
        reason = note if far <= bound else self.reason(found, tensor, theirs)
        return Check(name, far, bound, far <= bound, reason, position)

    def own_error(self) -> float | None:
        """Relative error of the first step's gradient in the user's precision, by float64's from the same
        weights; None without float64."""
        exact = self.in_float64()
        if exact is None:
            return None
        return comparing.worst_gradient(exact, exact.steps[0], self.references[self.precision].steps[0])[0]

    def weights_of(self, name: str) -> dict:
        """The weights and buffers that training left, not their average."""
        return checkpoint.load(self.made[name].folder / "checkpoint.pt")["model"]

    def reason(self, parted, tensor: str | None, run: Recorded) -> str:
        """Why a promise was broken, as far as it is known."""
        said = str(parted) if parted else f"small differences throughout, the largest in {tensor}"
        layers = run.meta["plain_norms"] + run.meta["torch_dropouts"]
        if parted and parted.stage == "forward" and layers:
            said += f"; layers that depend on the cut: {', '.join(layers[:3])}"
        if any(step.drew for step in run.steps):
            said += "; the forward pass draws from torch's generator (a dropout of its own?)"
        if run.meta["device"] != "cpu" and not run.meta["deterministic"]:
            said += "; kernels of this GPU may add in any order (hardware.deterministic=true)"
        return said
