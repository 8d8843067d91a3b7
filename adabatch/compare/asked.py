"""What the node `compare` of the configuration says, checked."""

import re
from dataclasses import dataclass

from adabatch.errors import UserError, suggest
from adabatch.verdict.plan import bounded, looks_of

RETRIED = ("failed", "out_of_memory")  # a divergence is a result: to roll again would hide it
NAME = re.compile(r"[\w .=+-]{1,40}")
KEYS = ("name", "overrides", "sizes", "control", "of")  # of an arm
COMMON = {  # keys of a schedule that the comparison sets in every arm: what an arm says instead
    "schedule.base_batch": "write sizes: [{0}] beside the overrides, an arm for each",
    "schedule.lr_batch": "it is the same in all arms: give it with the command",
}


@dataclass(frozen=True)
class Asked:
    """delta: percentage points. looks: runs of each arm at which a verdict is given. seeds: runs of each arm
    now. target: an error rate. adaptive: names of arms. arms: names, or dictionaries with KEYS. ladder: ratio
    of two fixed batches. order: seed of the order within blocks. retry: states of runs to be tried again.
    table: arms that are shown and not compared (`tabulated.py`)."""

    delta: float
    looks: tuple[int, ...]
    seeds: int
    target: float | None
    adaptive: tuple[str, ...]
    arms: tuple
    ladder: float
    tune_lr: bool
    tuning_seed: int
    order: int
    retry: tuple[str, ...]
    table: bool = False


def asked(node: dict, schedule: str) -> Asked:
    """schedule: the option that was chosen, the adaptive arm unless `compare.adaptive` names others."""
    looks = ours(looks_of, node["looks"])
    seeds = looks[0] if node["seeds"] is None else whole("seeds", node["seeds"], 1)
    if seeds > looks[-1]:
        raise UserError(
            f"compare.seeds is at most the last look, {looks[-1]}, got {seeds}: runs beyond it enter no "
            "verdict. A new comparison (another hydra.sweep.dir) may declare other compare.looks"
        )
    tuning_seed = whole("tuning_seed", node["tuning_seed"], 0)
    if tuning_seed < looks[-1]:
        raise UserError(
            f"compare.tuning_seed is no seed of the verdict (0 to {looks[-1] - 1}), got {tuning_seed}: "
            "take 1000"
        )
    ladder = ours(bounded, node, "ladder", 4, 1.1, 1e6)
    retry = tuple(names("retry", node["retry"]))
    for state in retry:
        if state not in RETRIED:
            raise UserError(
                f"compare.retry lists some of {', '.join(RETRIED)}, got {state!r}.{suggest(state, RETRIED)} "
                "A run that diverged is a result and stays one; interrupted runs go on by themselves"
            )
    if not isinstance(node["tune_lr"], bool):
        raise UserError(f"compare.tune_lr is true or false, got {node['tune_lr']!r}")
    if not isinstance(table := node.get("table", False), bool):
        raise UserError(f"compare.table is true or false, got {table!r}")
    if table and (wrong := next((key for key in ("tune_lr", "adaptive") if node[key]), None)):
        raise UserError(f"compare.{wrong} is for a comparison, and this is a table of arms: leave it out")
    return Asked(
        delta=ours(bounded, node, "delta", 1.0, 0.001, 50),
        looks=looks,
        seeds=seeds,
        target=None if node["target"] is None else ours(bounded, node, "target", 0, 0, 1),
        adaptive=tuple(names("adaptive", node["adaptive"])) or (schedule,),
        arms=tuple(listed(node["arms"], table)),
        ladder=ladder,
        tune_lr=node["tune_lr"],
        tuning_seed=tuning_seed,
        order=whole("order", node["order"], 0),
        retry=retry,
        table=table,
    )


def ours(read, *given):
    """read(*given), which knows keys of compare.yaml: on the command line they are `compare.KEY`."""
    try:
        return read(*given)
    except UserError as error:
        raise UserError(f"compare.{error}") from None


def whole(name: str, value, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"compare.{name} is a whole number from {least}, got {value!r}")
    return value


def names(name: str, value) -> list[str]:
    """A list of words; one word stands for a list of it."""
    value = [value] if isinstance(value, str) else value or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise UserError(f"compare.{name} is a list of names, got {value!r}")
    if len(set(value)) < len(value):
        raise UserError(f"compare.{name} names each once, got {value}")
    return value


def listed(value, table: bool = False) -> list:
    """The arms: names, or dictionaries of their own; of a table only these."""
    names = "" if table else "names and of "
    rule = f"compare.arms is a list of {names}{{name: ..., overrides: [...]}}, got {value!r}"
    value = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(value, list) or not value:
        raise UserError(rule)
    for entry in value:
        if isinstance(entry, dict):
            if not NAME.fullmatch(str(entry.get("name"))):
                raise UserError(
                    f"an arm's name is 1 to 40 letters, digits, spaces and -_.=+, got {entry.get('name')!r}"
                )
            described(entry, "compare.arms", table)
        elif table or not isinstance(entry, str):
            raise UserError(rule)
    return value


def described(entry: dict, where: str, table: bool = False) -> None:
    """UserError unless the keys are an arm's. where: for the message. table: of one, whose overrides may
    be of any keys."""
    known = KEYS[:2] if table else KEYS
    for key in entry:
        if key not in known:
            raise UserError(
                f"{where}: an arm has the keys {', '.join(known)}, got {key!r}.{suggest(key, known)}"
            )
    if bool(entry.get("control")) == bool(entry.get("overrides")):
        got = "both" if entry.get("control") else "neither"
        raise UserError(
            f"{where}: an arm has overrides, or control and of, got {got} for {entry.get('name', 'it')}"
        )
    lines, form = entry.get("overrides", []), "schedule=NAME and schedule.KEY=VALUE"
    form = "KEY=VALUE" if table else form
    if not isinstance(lines, list) or not all(isinstance(line, str) and "=" in line for line in lines):
        raise UserError(f"{where}: overrides is a list of {form}, got {lines!r}")
    for line in () if table else lines:
        key = line.lstrip("+~").partition("=")[0]
        if key != "schedule" and not key.startswith("schedule."):
            raise UserError(
                f"{where}: arms differ in their schedule only, got {line}: give it with the command"
            )
        if key in COMMON:
            remedy = COMMON[key].format(line.partition("=")[2])
            raise UserError(f"{where}: {line} is no override of an arm: {remedy}")
