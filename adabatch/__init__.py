"""adabatch: train a network under a schedule of batch sizes, and decide whether it beats a fixed one.

    import adabatch
    summary = adabatch.run(["model=vgg", "schedule=adabatch", "epochs=5"])

`import adabatch` loads nothing else; what is named here is fetched when it is first used.
"""

import importlib

__version__ = "0.1.0"

_FROM = {  # public name -> the module that has it
    "run": "adabatch.jobs",
    "Run": "adabatch.runs",
    "UserError": "adabatch.errors",
    "Diverged": "adabatch.errors",
    "Interrupted": "adabatch.errors",
    # For a loop of your own (docs/library.md). The rest of the schedules: adabatch.schedules.
    "Schedule": "adabatch.schedules",
    "Constant": "adabatch.schedules",
    "Steps": "adabatch.schedules",
    "closed_loop": "adabatch.schedules",
    "Rule": "adabatch.schedules",
    "Setting": "adabatch.schedules",
    "Observation": "adabatch.schedules",
    "walk": "adabatch.schedules",
    "Noise": "adabatch.noise",
    "BatchSampler": "adabatch.sampler",
}
__all__ = ["__version__", *_FROM]


def __getattr__(name: str):
    if name not in _FROM:
        raise AttributeError(f"module 'adabatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_FROM[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
