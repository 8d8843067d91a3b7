"""What tuning.yaml says of the search for each arm's learning rate. It may come from a stranger."""

from dataclasses import dataclass
from pathlib import Path

from adabatch.errors import UserError
from adabatch.files import number, read_yaml
from adabatch.report.facts import text

FILE = "tuning.yaml"
MOST, NAME = 200, 40  # arms, and candidates of an arm; characters of a name
# What a reader of "LRs tuned" must know of some arms, whose names follow.
UNTRAINED = "every learning rate of the search broke down for"
ALIKE = "the search found no difference between learning rates for"
EDGE = "the search ended at its edge (a better learning rate may lie beyond) for"


@dataclass(frozen=True)
class Search:
    """multiplier: that was chosen, of the rule's learning rate. base_lr: the rate that it gives. tried:
    (multiplier, validation error, None where the run broke down), ascending."""

    multiplier: float
    base_lr: float | None
    tried: tuple[tuple[float, float | None], ...]

    @property
    def trouble(self) -> str | None:
        """Why the choice may not be the best; None of a search that has ended between two worse rates."""
        errors = [error for _, error in self.tried if error is not None]
        if not errors:
            return UNTRAINED
        if len(errors) > 1 and len(set(errors)) == 1:
            return ALIKE
        return EDGE if self.multiplier in (self.tried[0][0], self.tried[-1][0]) else None

    @property
    def shown(self) -> str:
        """ "0.2 (x4)": the rate that was chosen."""
        times = f"x{self.multiplier:.4g}"
        return times if self.base_lr is None else f"{self.base_lr:.4g} ({times})"

    def json(self) -> dict:
        return {"base_lr": self.base_lr, "lr_multiplier": self.multiplier, "search_trouble": self.trouble}


def read(folder: Path, digest) -> dict[str, Search]:
    """{arm: its search} of a comparison's folder, {} where there was none. digest: of a file's content.
    UserError: the file is damaged, or not as it was hashed."""
    if not (folder / FILE).is_file():
        return {}
    content = read_yaml(folder / FILE)
    try:
        whole = content.get("sha256") == digest(content)
    except (TypeError, ValueError, RecursionError):
        whole = False
    arms = content.get("arms")
    if not whole or not isinstance(arms, dict):
        raise UserError(f"{FILE} is not as it was hashed")
    found = {text(name, NAME): one(entry) for name, entry in list(arms.items())[:MOST]}
    return {name: search for name, search in found.items() if search is not None}


def one(entry) -> Search | None:
    """An arm's search; None for what is none."""
    if not isinstance(entry, dict) or (multiplier := number(entry.get("multiplier"))) is None:
        return None
    listed = entry["tried"][:MOST] if isinstance(entry.get("tried"), list) else []
    pairs = [
        (number(e.get("multiplier")), number(e.get("validation_error")))
        for e in listed
        if isinstance(e, dict)
    ]
    tried = sorted(((m, error) for m, error in pairs if m is not None), key=lambda pair: pair[0])
    return Search(multiplier, number(entry.get("base_lr")), tuple(tried)) if tried else None


def troubles(searches: dict[str, Search]) -> list[str]:
    """What is to be said of searches that did not end well, with the arms' names."""
    found = {}
    for name, search in searches.items():
        if search.trouble:
            found.setdefault(search.trouble, []).append(name)
    every = len(searches) if len(searches) > 1 else 0
    return [
        f"{what} {'every arm' if len(names) == every else ', '.join(names)}" for what, names in found.items()
    ]
