"""The files that install the project: metadata, constraints, the conda file, what the wheel contains."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13")


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pins_for(python: str) -> dict[str, str]:
    """{package: version} that the constraints give on Linux under `python` ("3.12")."""
    env = {"python_version": python, "python_full_version": python + ".1", "sys_platform": "linux"}
    found = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate(env):
            assert pin.name not in found, f"{pin.name} is pinned twice for Python {python}"
            (spec,) = pin.specifier
            found[canonicalize_name(pin.name)] = spec.version
    return found


def requirements(extra: str = "") -> list[Requirement]:
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(line) for line in lines]


def all_requirements() -> list[Requirement]:
    extras = [r for extra in PROJECT["optional-dependencies"] for r in requirements(extra)]
    return [r for r in requirements() + extras if r.name != "adabatch"]


def test_supported_pythons():
    spec = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.10.14", "3.11.0", "3.12.1", "3.13.9", "3.14.0", "3.15.1") if v in spec] == [
        "3.11.0",
        "3.12.1",
        "3.13.9",
    ]
    line = next(x for x in (ROOT / "Makefile").read_text().splitlines() if x.startswith("SUPPORTED"))
    assert "(3, 11) <= sys.version_info[:2] < (3, 14)" in line  # make refuses what pip would refuse


def test_torch_range():
    """From 2.11 to whatever is newest: no upper bound, and no pin in the project itself."""
    (torch,) = [r for r in requirements() if r.name == "torch"]
    assert "2.11.0" in torch.specifier and "2.15.0" in torch.specifier and "3.0" in torch.specifier
    assert "2.10.1" not in torch.specifier


def test_dev_has_every_other_extra():
    """What the README's commands need is installed by `make train`, which installs .[dev]."""
    own = next(r for r in requirements("dev") if r.name == "adabatch")
    assert own.extras == set(PROJECT["optional-dependencies"]) - {"dev"}


def test_constraints_are_pins_without_hosts():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*-|--hash|@", text, re.M)
    for pin in pins():
        (spec,) = pin.specifier
        assert spec.operator == "==" and "+" not in spec.version and "*" not in spec.version, str(pin)
        assert not pin.extras, f"pip refuses extras in a constraints file: {pin}"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_satisfy_the_requirements(python):
    pinned = pins_for(python)
    for need in all_requirements():
        version = pinned.get(canonicalize_name(need.name))
        assert version is not None, f"{need.name} is not pinned for Python {python}"
        assert need.specifier.contains(version, prereleases=True), f"{need} is not met by the pin {version}"


def test_every_installed_dependency_is_pinned():
    """Walks from our requirements through what is installed; NVIDIA's libraries belong to the torch build."""
    pinned, seen, missing = pins_for(f"3.{sys.version_info.minor}"), set(), set()
    queue = [(r.name, tuple(r.extras)) for r in all_requirements()]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen or re.match(r"nvidia-|cuda-", name):
            continue
        seen.add((name, extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # a dependency of another platform, or an extra that is not installed here
        if name not in pinned:
            missing.add(name)
        for need in map(Requirement, needs):
            envs = [dict(default_environment(), extra=e) for e in ("", *extras)]
            if need.marker is None or any(need.marker.evaluate(env) for env in envs):
                queue.append((canonicalize_name(need.name), tuple(sorted(need.extras))))
    assert len(seen) > 40, "the walk ended early"
    assert not missing


def test_environment_yml():
    """As far as it can be checked without conda: its shape, and each spec by a parser of conda's tools."""
    import rattler

    env = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert set(env) == {"name", "channels", "dependencies"}
    assert env["name"] == "adabatch" and env["channels"] == ["conda-forge", "nodefaults"]
    *conda, last = env["dependencies"]
    assert last == {"pip": ["-e .[dev]"]}  # everything is listed once, in pyproject.toml
    specs = {s.name.normalized: s for s in (rattler.MatchSpec(text, strict=True) for text in conda)}
    assert set(specs) == {"python", "pip"}
    assert str(specs["python"].version) == PROJECT["requires-python"]
    with pytest.raises(Exception, match="unable to parse"):
        rattler.MatchSpec("pip>>3", strict=True)  # the parser does refuse


def test_build_backend_is_installed_with_dev():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert build["requires"][0] in PROJECT["optional-dependencies"]["dev"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built without the network."""
    out = tmp_path_factory.mktemp("dist")
    build(ROOT, out)
    return out


def build(source: Path, out: Path, *targets: str):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *targets]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def options() -> set[str]:
    """Every YAML of conf/, as paths relative to it."""
    return {p.relative_to(ROOT / "conf").as_posix() for p in (ROOT / "conf").rglob("*.yaml")}


def test_wheel_has_every_option(built):
    names = members(next(built.glob("*.whl")))
    assert {f"adabatch/conf/{name}" for name in options()} <= names
    for needed in (
        "config.yaml",
        "model/vgg.yaml",
        "dataset/digits.yaml",
        "schedule/adabatch.yaml",
        "hardware/auto.yaml",
        "optimizer/sgd.yaml",
    ):
        assert f"adabatch/conf/{needed}" in names
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "adabatch").rglob("*.py")}
    assert modules <= names
    info = f"adabatch-{PROJECT['version']}.dist-info"
    tops = {name.split("/")[0] for name in names}
    assert tops == {"adabatch", "hydra_plugins", info}, "the wheel installs a stray folder"
    plugin = {
        p.relative_to(ROOT / "launch").as_posix() for p in (ROOT / "launch/hydra_plugins").rglob("*.py")
    }
    # Hydra's plugins of other packages live in hydra_plugins too: a namespace has no __init__.py.
    assert plugin == {name for name in names if name.startswith("hydra_plugins/")}
    assert (
        "hydra_plugins/__init__.py" not in plugin and "hydra_plugins/adabatch_launcher/__init__.py" in plugin
    )
    assert f"{info}/licenses/LICENSE" in names


def test_sdist_builds_the_same_wheel(built, tmp_path):
    """Whoever installs from the sdist gets the options too."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"adabatch-{PROJECT['version']}"
    assert options() == {p.relative_to(source / "conf").as_posix() for p in (source / "conf").rglob("*.yaml")}
    build(source, tmp_path, "-t", "wheel")
    assert members(next(built.glob("*.whl"))) == members(next(tmp_path.glob("*.whl")))


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_console_scripts_resolve(script):
    module, _, function = PROJECT["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_outputs_is_in_a_checkout_and_its_contents_are_not():
    assert (ROOT / "outputs" / ".gitkeep").is_file()
    paths = ["outputs/run-0/config.yaml", "outputs/.gitkeep", ".venv/x", "conf/config.yaml"]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:  # not a git checkout: an unpacked sdist
        return
    assert ignored.stdout.split() == ["outputs/run-0/config.yaml", ".venv/x"]
