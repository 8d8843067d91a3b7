"""From the names of arms to schedules that can be run.

Every arm is the user's command with a schedule of its own: the keys that were typed hold for every schedule
that has them, `schedule.base_batch` is the batch whose multiples the sizes are, and `schedule.lr_batch` is
the same in all arms, so that a learning rate follows its batch by the same rule everywhere.
"""

import re
from contextlib import contextmanager
from dataclasses import replace

from adabatch import plan, runs
from adabatch.compare import matching
from adabatch.compare.arms import CONTROLS, WORDS, Arm, control_of, key_of, spelled
from adabatch.compare.asked import COMMON, NAME, Asked, described
from adabatch.errors import UserError, suggest

LARGEST = 16  # times the base batch: how far a closed loop may go, where nothing else says it
TIMES, SHARE = re.compile(r"(\d+(?:\.\d+)?)x"), re.compile(r"(\d+(?:\.\d+)?)%")


def refuse_name(name: str) -> None:
    """UserError for a whole name, a size or a control's words included, that a report would cut."""
    if not NAME.fullmatch(name):
        raise UserError(
            "an arm's name is 1 to 40 letters, digits, spaces and -_.=+, what a size or a control adds "
            f"included, got {name!r}: give the arm a shorter or simpler name"
        )


@contextmanager
def told(entry: dict):
    """A mistake in an arm of the user's own names the arm and the file."""
    try:
        yield
    except UserError as error:
        if not entry.get("where"):
            raise
        raise UserError(f"arm {entry['name']} ({entry['where']}): {error}") from error


class Maker:
    """config: of the command as it stands. option: the schedule it names. typed: its overrides of
    schedule.KEY. compose: overrides of an arm -> checked configuration. schema: a schedule's name -> its
    YAML's node, or None. load: an arm's name -> its file's content and, of the user's own, its path, or None.
    known: names of both, for suggestions."""

    def __init__(self, config: dict, option: str, typed: list, asked: Asked, compose, schema, load, known):
        self.config, self.option, self.asked = config, option, asked
        self.compose, self.schema, self.load, self.known = compose, schema, load, known
        node = config["schedule"]
        if not isinstance(node.get("base_batch"), int):
            raise UserError(
                "a comparison has multiples of schedule.base_batch, and this schedule has no such key"
            )
        self.batch, self.lr_batch = node["base_batch"], node.get("lr_batch") or node["base_batch"]
        self.samples = plan.samples_of(config["dataset"])
        if not self.samples:
            raise UserError(
                "a comparison must know the training samples beforehand: set dataset.samples to their number"
            )
        self.typed = {key_of(line): line for line in typed if key_of(line) not in COMMON}
        self.arms: list[Arm] = []
        self.notes: list[str] = []
        self.adaptive: list[Arm] = []
        self.decay, self.top = {}, None

    # -- one arm -----------------------------------------------------------------------------------

    def sized(self, line: str) -> str:
        """`4x` is four base batches, `5%` a share of the epochs."""
        key, _, value = line.partition("=")
        if found := TIMES.fullmatch(value):
            return f"{key}={max(1, round(self.batch * float(found[1])))}"
        if found := SHARE.fullmatch(value):
            return f"{key}={self.config['epochs'] * float(found[1]) / 100:.12g}"
        return line

    def fits(self, key: str, node: dict) -> bool:
        """Whether another schedule has a typed key, in a part of the same class."""
        here, there = self.schema(self.option) or {}, node
        for name in key.split(".")[1:-1]:
            here, there = (n.get(name) if isinstance(n, dict) else None for n in (here, there))
            if not isinstance(here, dict) or not isinstance(there, dict):
                return False
            if here.get("_target_") != there.get("_target_"):
                return False
        name = key.rpartition(".")[2]
        return name in there and name != "_target_"

    def lines(self, own, batch: int, forced=(), decay=None) -> tuple[str, ...]:
        """The schedule of an arm. What was typed comes before what its file says, sizes and `forced` before
        both. decay: of a fixed arm, None = as the first adaptive arm's."""
        option = next((line.partition("=")[2] for line in own if key_of(line) == "schedule"), self.option)
        if (node := self.schema(option)) is None:
            raise UserError(f"schedule={option}: there is no such schedule.{suggest(option, self.known)}")
        found = {key_of(line): self.sized(line) for line in own if key_of(line) != "schedule"}
        if option == "fixed":
            decay = self.decay if decay is None else decay
            inherited = {k: v for k, v in decay.items() if k not in found}
            found |= {k: f"{k}={v}" for k, v in inherited.items() if self.fits(k, node)}
        found |= {k: v for k, v in self.typed.items() if option == self.option or self.fits(k, node)}
        found |= {key_of(line): line for line in forced}
        sizes = f"schedule.base_batch={batch}", f"schedule.lr_batch={self.lr_batch}"
        return (f"schedule={option}", *found.values(), *sizes)

    def made(self, name: str, lines) -> Arm:
        """A control is no candidate, whatever its batch does."""
        refuse_name(name)
        config = self.compose([*lines, f"compare.arm='{name}'", "compare.stage=verdict"])
        schedule = plan.schedule(config, self.samples)
        path = matching.trajectory(schedule) if matching.open_loop(schedule) else None
        arm = Arm(name, tuple(lines), config, schedule, path, control_of(config["schedule"]))
        low, high = arm.batches
        return replace(arm, adaptive=arm.control is None and (path is None or low != high))

    def add(self, arm: Arm) -> None:
        """Unless an arm does the same already; a candidate takes the place of another, and what is fixed that
        of a control in neither class."""
        for number, other in enumerate(self.arms):
            same = arm.path and other.path and matching.equal(arm.path, other.path)
            if same or (
                arm.config and other.config and runs.identity(arm.config) == runs.identity(other.config)
            ):
                if arm.weight > other.weight:
                    self.arms[number], arm, other = arm, other, arm
                self.notes.append(f"{arm.name} does what {other.name} does: left out")
                return
            if arm.name == other.name:
                raise UserError(f"two arms are called {arm.name}: name one of them otherwise")
        self.arms.append(arm)

    # -- all ---------------------------------------------------------------------------------------

    def all(self) -> tuple[list[Arm], list[str]]:
        """The arms in the order asked for, and what is to be said of them."""
        entries = [self.described(entry) for entry in self.asked.arms if entry != "adaptive"]
        plain = [e for e in entries if not e.get("control") and not e.get("sizes")]
        wanted = [self.described(n) for n in self.asked.adaptive] if "adaptive" in self.asked.arms else []
        self.adapt(wanted, plain)
        for entry in self.asked.arms:
            if entry == "adaptive":
                for arm in self.adaptive[: len(wanted)]:
                    self.add(arm)
                continue
            found = self.described(entry)
            with told(found):
                self.expand(found)
        names = [arm.name for arm in self.arms]
        if any(arm.of is not None and arm.of not in names for arm in self.arms):
            raise UserError("a control needs the arm that it is of among compare.arms")
        self.refuse_budgets()
        if not any(arm.adaptive is False for arm in self.arms):
            raise UserError("compare.arms has no fixed arm to compare with: add fixed, or mean_matched")
        return self.arms, self.notes

    def described(self, entry) -> dict:
        """An arm's keys: given, of its file, or a schedule's name. where: what the user wrote it in."""
        if isinstance(entry, dict):
            return {**entry, "where": "compare.arms"}
        if (found := self.load(entry)) is not None:
            content, file = found
            described({"name": entry, **content}, file or f"conf/arm/{entry}.yaml")
            return {"name": entry, **content, "where": file}
        if self.schema(entry) is not None:
            return {"name": entry, "overrides": [f"schedule={entry}"]}
        raise UserError(
            f"compare.arms={entry}: there is no arm/{entry}.yaml, ours or in --config-dir, and no schedule "
            "of that name."
            f"{suggest(entry, [*self.known, 'adaptive'])}"
        )

    def adapt(self, wanted: list[dict], others: list[dict]) -> None:
        """Makes the adaptive arms; the largest batch follows from them. UserError: there is none."""
        found = []
        for number, entry in enumerate([*wanted, *others]):
            own = entry.get("overrides", [])
            with told(entry):
                arm = self.made(entry["name"], self.lines(own, self.batch))
            if arm.adaptive:
                found.append((arm, own))
            elif number < len(wanted):
                low, high = arm.batches
                why = "is a control" if low != high else f"never changes its batch of {low} in this run"
                raise UserError(
                    f"{arm.name} {why}: name an adaptive schedule "
                    "(schedule=adabatch, compare.adaptive=[noise_scale]), or more epochs"
                )
        if not found:
            raise UserError("compare.arms has no adaptive arm: add adaptive, or the name of such a schedule")
        tops = [arm.batches[1] for arm, _ in found if arm.path]
        top = max(tops) if tops else LARGEST * self.batch
        top = self.config["schedule"].get("max_batch") or top
        self.top = min(top, self.samples)
        for arm, own in found:
            if arm.path is None and arm.schedule.cap > self.top:
                limit = [f"schedule.max_batch={self.top}"]
                arm = self.made(arm.name, self.lines(own, self.batch, limit))
            self.adaptive.append(arm)
        self.decay = self.decay_of(self.adaptive[0].config["schedule"].get("decay"))

    def decay_of(self, node) -> dict:
        """What the adaptive arm's decay says otherwise than the fixed schedule's, where both are of a class:
        the fixed arms decay alike."""
        plain = (self.schema("fixed") or {}).get("decay") or {}
        if not isinstance(node, dict) or node.get("_target_") != plain.get("_target_"):
            return {}
        found = {k: v for k, v in node.items() if plain.get(k) != v}
        found |= {k: None for k in plain if k not in node}
        return {f"schedule.decay.{k}": spelled(v) for k, v in found.items()}

    def expand(self, entry: dict) -> None:
        own = entry.get("overrides", [])
        if control := entry.get("control"):
            return self.controls(entry, control)
        if sizes := entry.get("sizes"):
            for size in self.ladder() if sizes == "ladder" else self.sizes(sizes):
                self.add(self.made(f"{entry['name']} {size}", self.lines(own, size)))
            return None
        known = next((arm for arm in self.adaptive if arm.name == entry["name"]), None)
        return self.add(known or self.made(entry["name"], self.lines(own, self.batch)))

    def ladder(self) -> list[int]:
        """The base batch, every so many times it, and the largest."""
        found, size = [], float(self.batch)
        while round(size) < self.top:
            found.append(round(size))
            size *= self.asked.ladder
        return [*found, max(self.top, self.batch)]

    def sizes(self, given) -> list[int]:
        found = []
        for size in given if isinstance(given, list) else [given]:
            number = self.sized(f"size={size}").partition("=")[2]
            if not number.isdecimal() or not 1 <= int(number) <= self.samples:
                raise UserError(
                    "sizes is ladder or a list of batches like 4x or 512, at most the "
                    f"{self.samples:,} training samples, got {size!r}"
                )
            found.append(int(number))
        return found

    def controls(self, entry: dict, control: str) -> None:
        if control not in CONTROLS:
            known = ", ".join(CONTROLS)
            raise UserError(f"control is one of {known}, got {control!r}.{suggest(control, CONTROLS)}")
        of = entry.get("of", "adaptive")
        sources = [arm for arm in self.adaptive if of in ("adaptive", arm.name)]
        if not sources:
            raise UserError(f"{entry['name']} is a control of {of}, which is no adaptive arm")
        for source in sources:
            made = self.computed(control, source)
            if made is None:
                made = Arm(f"{WORDS[control]} {source.name}")
                refuse_name(made.name)
            self.add(replace(made, control=control, of=source.name))

    def computed(self, control: str, source: Arm) -> Arm | None:
        """A control that needs no run of its source; None where it does."""
        name = f"{WORDS[control]} {source.name}"
        if control == "mean_matched" and source.path:
            batch = matching.mean_batch(source.schedule.budget, len(source.path))
            name = f"mean-matched {batch}"
            taken = any(arm.name == name for arm in self.arms)
            arm = self.made(f"{name} to {source.name}" if taken else name, self.plain(source, batch))
            exact = matching.follows(arm.schedule, source.path, source.schedule.noise_exponent)
            return arm if exact else None
        if control in ("lr_twin", "batch_twin") and source.path and hasattr(source.schedule, "twin"):
            return self.made(name, (*source.lines, f"schedule.twin={control.partition('_')[0]}"))
        if control == "lr_twin":
            arm = self.made(name, self.plain(source, self.batch))
            return arm if matching.keeps_noise(source.schedule, arm.schedule) else None
        return None

    def plain(self, source: Arm, batch: int) -> tuple[str, ...]:
        """The fixed batch with a source's scaling, without a warm-up of its own."""
        forced = ["schedule.warmup_epochs=0"]
        if (scaling := source.config["schedule"].get("scaling")) not in (None, "gain"):
            forced.append(f"schedule.scaling={scaling}")
        decay = self.decay_of(source.config["schedule"].get("decay"))
        return self.lines(["schedule=fixed"], batch, forced, decay)

    def refuse_budgets(self) -> None:
        """UserError where arms would train different numbers of samples."""
        budget = self.adaptive[0].schedule.budget
        for arm in self.arms:
            if arm.schedule is None:  # it replays one of the others
                continue
            if getattr(arm.schedule, "compat", None):
                raise UserError(
                    f"arms train the same number of samples, and {arm.name} with schedule.compat="
                    f"{arm.schedule.compat} drops the tail of every epoch: leave schedule.compat out"
                )
            early = getattr(getattr(arm.schedule, "scaling", None), "ends_early", False)
            if early or arm.schedule.budget != budget:
                raise UserError(
                    f"arms train the same number of samples, and {arm.name} would not: set its "
                    "schedule.stretch=1, or schedule.stop=samples"
                )
