"""What-if worlds: another device, or more of them, from a small YAML. No torch.

    name: NVIDIA V100 SXM2     source: [where the figures are from]
    peak: {fp32: 15.7e12}      operations per second by precision; null = the profiled device itself
    memory_bandwidth: 900e9    bytes per second         memory: 16e9          bytes
    devices: 4                                          link_bandwidth: 150e9 bytes per second, one way
    latency: 3.4e-6            seconds of one hop       collective: 8.4e-6    seconds to start a reduction
    launch: null               seconds to start an operation; null = as measured on the profiled host

A pass over m samples takes at least each of

    FLOP(m) / peak      2 * bytes kept for the backward pass(m) / memory_bandwidth      operations * launch

(Williams et al. 2009's roofline, and the host that starts the operations meanwhile), and is taken to take the
largest of them. An update reads weights, gradients and momentum and writes two of them; a ring adds gradients
up in 2 (W - 1) hops, each of 1/W of them (Patarasuk and Yuan 2009). No device reaches its peak: what comes
out is an order of magnitude, and called so.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

from adabatch import cutting, files
from adabatch.errors import UserError, suggest
from adabatch.pace import Pace, Step
from adabatch.profiles import Profile

HERE = Path(__file__).parent
NUMBERS = ("memory_bandwidth", "memory", "link_bandwidth", "latency", "collective", "launch")
KNOWN = ("name", "source", "peak", "devices", *NUMBERS)
PRECISIONS = ("fp32", "bf16", "tf32", "fp64")
ACTIVATIONS = 0.4  # of a device's memory, as hardware.micro_batch=auto shares it out
LABEL = "order of magnitude"
REMEDY = "A world is a YAML of keys such as memory_bandwidth: 900e9 (docs/forecast.md)"


@dataclass(frozen=True)
class World:
    """As in the YAML; peak: empty = the profiled device."""

    name: str
    source: tuple[str, ...]
    peak: dict
    devices: int
    memory_bandwidth: float | None = None
    memory: float | None = None
    link_bandwidth: float | None = None
    latency: float = 0.0
    collective: float = 0.0
    launch: float | None = None


def names() -> list[str]:
    """The descriptions that come with the program."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def read(source: str, devices: int | None = None) -> World:
    """The world of a file, or one of ours by its name. UserError: there is none, or a value that no world can
    have."""
    path = Path(source).expanduser()
    if not path.is_file():
        if source.lower() not in names():
            near = suggest(source.lower(), names())
            raise UserError(f"--world is a YAML file or one of {', '.join(names())}, got {source}.{near}")
        path = HERE / f"{source.lower()}.yaml"
    try:
        value = files.read_yaml(path)
    except UserError as error:
        raise UserError(f"{str(error).partition(': not a file of an')[0]}. {REMEDY}") from None
    for key in value:
        if key not in KNOWN:
            raise UserError(f"{path}: {key!r} is no key of a world.{suggest(str(key), KNOWN)}")
    peak = value.get("peak") or {}
    if not isinstance(peak, dict) or any(k not in PRECISIONS for k in peak):
        raise UserError(f"{path}: peak lists operations per second by {', '.join(PRECISIONS)}, got {peak!r}")
    found = {k: _positive(value[k], k, path) for k in NUMBERS if value.get(k) is not None}
    if peak and "memory_bandwidth" not in found:
        raise UserError(f"{path}: a device has a memory_bandwidth (bytes per second), got none")
    count = devices or value.get("devices", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 100_000:
        raise UserError(f"{path}: devices is a whole number from 1 to 100000, got {count!r}")
    if count > 1 and "link_bandwidth" not in found:
        raise UserError(f"{path}: {count} devices have a link_bandwidth (bytes per second), got none")
    source = value.get("source") or []
    return World(
        name="".join(c for c in str(value.get("name") or path.stem)[:100] if c.isprintable()),
        source=tuple(str(s)[:300] for s in (source if isinstance(source, list) else [source])),
        peak={k: _positive(v, f"peak.{k}", path) for k, v in peak.items()},
        devices=count,
        **found,
    )


def _positive(value, name: str, path) -> float:
    found = files.number(value)
    if found is None and isinstance(value, str):  # YAML reads 900e9, without a point, as text
        with contextlib.suppress(ValueError):
            found = files.number(float(value))
    if found is None or found <= 0:
        raise UserError(f"{path}: {name} is a number above 0, got {value!r}")
    return found


class WorldPace:
    """What `Pace` is, for a world. profile: of the network, on one process of any machine."""

    def __init__(self, profile: Profile, world: World, precision: str, largest: int):
        self.world, self.profile, self.precision, self.first = world, profile, precision, {}
        self.own = None if world.peak else Pace(profile)
        self.parameters = self._needed("parameter_bytes")
        if world.peak:
            if precision not in world.peak:
                have = ", ".join(world.peak)
                raise UserError(f"{world.name} has no peak for hardware.precision={precision}, but {have}")
            self.peak = world.peak[precision]
            self.flops, self.bytes, self.operations, self.launch = (
                self._needed(name)
                for name in (
                    "flops_per_sample", "activation_bytes_per_sample", "operations_per_pass",
                    "dispatch_seconds",
                )
            )  # fmt: skip
        elif profile.world > 1:
            raise UserError(
                f"{world.name} has no peak, so that the profiled device stands for it, and that was profiled "
                f"in {profile.world} processes: profile one (hardware.processes=1)"
            )
        self.micro_batch = self._fits(largest)
        self.measured: list[int] = [2**k for k in range(31) if profile.unit <= 2**k]
        self._kept: dict[int, Step] = {}

    def _needed(self, name: str) -> float:
        found = self.profile.figure(name)
        if found is None:
            raise UserError(f"the profile does not say its {name}, which a world needs: profile again")
        return found

    def _fits(self, largest: int) -> int:
        unit = self.profile.unit
        if self.own:
            return self.profile.fits
        if self.world.memory is None:
            return cutting.longest(largest, unit, self.world.devices)
        groups = ACTIVATIONS * self.world.memory / self.bytes / unit
        if groups < 1:
            raise UserError(f"{self.world.name}: one ghost group of {unit} samples does not fit its memory")
        return min(unit << int(math.log2(groups)), cutting.longest(largest, unit, self.world.devices))

    def one(self, m: int) -> float:
        """Seconds of a pass over m samples."""
        if self.own:
            return self.own.curve(m)
        launch = self.world.launch or self.launch
        traffic = 2 * self.bytes * m / self.world.memory_bandwidth
        return max(self.flops * m / self.peak, traffic, self.operations * launch)

    def reduction(self) -> float:
        """Seconds in which the devices add up their gradients, after the backward pass."""
        count, w = self.world.devices, self.world
        if count == 1:
            return 0.0
        hops = 2 * (count - 1)
        return w.collective + hops * (w.latency + self.parameters / count / w.link_bandwidth)

    def cut(self, batch: int) -> tuple[int, ...]:
        """The passes of the device that has most to do."""
        unit = self.profile.unit
        share = min(batch, cutting.longest(batch, unit, self.world.devices))
        passes = cutting.passes(slice(0, share), batch, unit, self.micro_batch)
        return tuple(p.stop - p.start for p in passes)

    def step(self, batch: int) -> Step:
        if batch not in self._kept:
            update = self.own.fixed if self.own else 5 * self.parameters / self.world.memory_bandwidth
            waiting = self.reduction()
            seconds = sum(map(self.one, self.cut(batch))) + update + waiting
            self._kept[batch] = Step(seconds, 0.0, waiting, True)
        return self._kept[batch]

    def throughput(self, batch: int) -> float:
        return batch / self.step(batch).seconds

    def alone(self, batch: int) -> "WorldPace":
        """That of a run under this batch size alone."""
        return WorldPace(self.profile, self.world, self.precision, batch)

    def measuring(self, needs, batch: int) -> None:
        """Not known."""
        return None

    def doubt(self, counted: list) -> None:
        """There is no interval."""
        return None
