"""The shape of the program: imports go down, the core stays small, a light import stays light."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "adabatch").rglob("*.py"))

# A module (or a package, as one) imports only what stands in a line above its own. Add new ones by hand.
LAYERS = [
    "adabatch errors draws slurm",  # the ground; "adabatch" = the version and the names fetched on demand
    "cutting places losses student fading pieces",
    "noise files environment arguments labels jobrecord native published",
    "ghostnorm bilinear crowding",
    "console ledger layers convolution data checkpoint trackers ema optim targets profiles suggestions",
    "inputs kept throughput persample machine logs watch pace finetune",
    "runs models statistics flat measure meeting forecast muon",
    "alike worlds",
    "ranks schedules owner report signals processes",
    "hardware summing memory submission sharing traces phases",
    "step evaluation witness status",
    "plan outcome shadow sampler requeue onlookers",
    "sanity claim audit",
    "build config figures",
    "agreement mistakes distance",
    "commandline verdict",
    "compare",
    "composed",
    "combinations",
    "record",
    "resume",
    "train",
    "evaluate spawn lead planning profiling",
    "legs",
    "jobs",
    "pool submitted",
    "sweep",
    "__main__",
    "verify",  # forks the command
]
LAYER = {name: depth for depth, names in enumerate(LAYERS) for name in names.split()}
# Narrower than the layers: the whole list of what these may import.
ONLY = {
    "schedules": {"errors", "draws", "noise", "cutting"},  # a schedule never sees model, optimizer or data
    "models": {"errors", "draws", "layers"},
    "step": {"errors", "fading", "layers", "losses", "noise", "flat", "measure", "memory", "summing"},
    "report": {"errors", "runs", "files", "statistics", "suggestions"},
    "status": set("errors runs files owner places console labels submission slurm arguments".split()),
    "statistics": set(),
    "verdict": set("errors runs files statistics report status arguments console labels".split()),
}
# `python -m adabatch` knows its configuration to be good before torch is loaded; a report never needs it.
LIGHT = (
    "adabatch errors files environment runs owner outcome report config mistakes targets jobs plan".split()
)
LIGHT += [
    "audit",
    "memory",
    "machine",
    "phases",
    "profiles",
    "pace",
    "forecast",
    "student",
    "worlds",
    "alike",
    "labels",
    "ledger",
    "suggestions",
    "arguments",
    "combinations",
    "commandline",
    "cutting",
    "planning",
    "processes",
    "places",
    "meeting",
    "published",
    "watch",
    "logs",
    "legs",
    "signals",
    "spawn",
    "lead",
    "pool",
    "sanity",
    "sharing",
    "schedules",
    "noise",
    "sweep",
    "throughput",
    "console",
    "status",
    "slurm",
    "jobrecord",
    "submission",
    "submitted",
    "requeue",
    "claim",
    "traces",
    "onlookers",
    "__main__",
]
HEAVY = {"torch", "torchvision", "wandb", "matplotlib", "sklearn", "tensorboard", "scipy"}
CORE = ("train.py", "step.py", "schedules/core.py", "data/stream.py")


@cache
def tree(path):
    return ast.parse(path.read_text())


def relative(path):
    return path.relative_to(ROOT / "adabatch").as_posix()


def component(path):
    """adabatch/data/stream.py -> data; adabatch/train.py -> train; adabatch/__init__.py -> adabatch."""
    first = path.relative_to(ROOT / "adabatch").parts[0].removesuffix(".py")
    return "adabatch" if first == "__init__" else first


def modules(node):
    """Dotted names that an import statement, or an import by name, may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
    ):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
    return []


def ours(path):
    """Components that a file imports anywhere, also inside a function."""
    found = set()
    for node in ast.walk(tree(path)):
        for name in modules(node):
            top, *rest = name.split(".")
            if top == "adabatch":
                known = rest and (
                    (ROOT / "adabatch" / rest[0]).is_dir() or (ROOT / f"adabatch/{rest[0]}.py").exists()
                )
                found.add(rest[0] if known else "adabatch")
    return found - {component(path)}


def at_import(path):
    """Top-level packages that importing a file loads at once (not those inside functions)."""
    waiting, found = [tree(path)], []
    while waiting:
        node = waiting.pop()
        found += modules(node)
        children = ast.iter_child_nodes(node)
        waiting += [
            n for n in children if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_down(path):
    own = component(path)
    assert own in LAYER, f"{own} stands in no layer: say in which, in LAYERS above"
    if own == "adabatch":
        return  # fetches its public names when they are asked for
    for other in ours(path):
        assert other in LAYER, f"{relative(path)} imports {other}, which stands in no layer"
        assert LAYER[other] < LAYER[own], f"{relative(path)} imports {other}, which is not below it"
        assert other in ONLY.get(own, {other}), f"{relative(path)} imports {other}, which is not for it"


def test_the_layers_name_what_exists():
    """A name that has gone is taken out, but for those that later issues bring."""
    assert set(LAYER) - {component(path) for path in FILES} <= {"noise", "statistics"}


@pytest.mark.parametrize("path", [p for p in FILES if component(p) in LIGHT], ids=relative)
def test_light_modules_load_nothing_heavy(path):
    for name in at_import(path):
        assert name.split(".")[0] not in HEAVY | {"numpy"}, f"{relative(path)} loads {name}"
        if name.startswith("adabatch."):
            below = name.split(".")[1]
            assert below in LIGHT or below not in map(component, FILES), f"{relative(path)} loads {name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_default_run_loads_no_rarely_used_package(path):
    if relative(path) == "models/torchvision.py" or relative(path) == "report/png.py":
        return  # they are these packages' only users, and are themselves loaded inside functions
    loaded = {name.split(".")[0] for name in at_import(path)} | {
        ".".join(n.split(".")[:2]) for n in at_import(path)
    }
    assert not loaded & (HEAVY - {"torch"} | {"torch.optim", "torch._dynamo"})


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_who_touches_what(path):
    name = relative(path)
    for node in ast.walk(tree(path)):
        imported = [m for m in modules(node) if m.startswith("torch.distributed")]
        attribute = node.attr if isinstance(node, ast.Attribute) else ""
        spelled = ast.unparse(node) if attribute == "distributed" else ""
        assert name in ("ranks.py", "meeting.py") or not imported and spelled != "torch.distributed", (
            "only the ranks and the store they meet in call it"
        )
        assert name in ("step.py", "flat.py", "optim.py") or attribute != "grad", (
            "only the step touches .grad"
        )
        assert not (name == "optim.py" and attribute == "grad" and isinstance(node.ctx, ast.Store))
        if isinstance(node, ast.Import | ast.ImportFrom) and component(path) not in (
            "config", "onlookers", "combinations", "composed", "mistakes", "jobs", "sweep", "__main__",
            "evaluate",
        ):  # fmt: skip
            assert not {m.split(".")[0] for m in modules(node)} & {"hydra", "omegaconf"}, (
                "plain values below here"
            )


def test_the_core_can_be_read_in_an_evening():
    lines = {name: len((ROOT / "adabatch" / name).read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) <= 800, lines


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_functions_and_lines_are_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300, f"{len(lines)} lines"
    assert [i for i, line in enumerate(lines, 1) if len(line) > 110] == []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and (relative(path), node.name) != ("train.py", "loop"):
            assert node.end_lineno - node.lineno < 60, (
                f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
            )


def test_the_loop_is_flat():
    """At most 3 levels of indentation in the loop's body."""
    loop = next(
        n
        for n in tree(ROOT / "adabatch/train.py").body
        if isinstance(n, ast.FunctionDef) and n.name == "loop"
    )
    assert max(node.col_offset for node in ast.walk(loop) if isinstance(node, ast.stmt)) <= 4 * 4


def test_a_light_import_stays_light():
    code = (
        "import sys, adabatch, adabatch.schedules\n"
        "heavy = {'torch', 'numpy', 'hydra', 'omegaconf', 'rich', 'wandb', 'matplotlib', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)), adabatch.UserError.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[] UserError\n", done.stderr


def test_the_command_line_knows_its_configuration_without_torch():
    code = "import sys, adabatch.__main__, adabatch.config, adabatch.jobs, adabatch.report, adabatch.sweep\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
