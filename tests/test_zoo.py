"""Networks of every family through the real adabatch-verify, made small as benchmarks/zoo.py makes them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("zoo", ROOT / "benchmarks/zoo.py")
zoo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(zoo)


def test_every_network_is_in_the_zoo():
    assert set(zoo.SMALL) == {path.stem for path in (ROOT / "conf/model").glob("*.yaml")}


# Fully connected; dropout by position and small maps; residual; concatenated; grouped convolutions.
@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist_f1", "alexnet", "resnet", "densenet", "resnext"])
def test_a_family_keeps_its_promises(model):
    checks, _ = zoo.verified(model, ["--steps", "4", "--only", "micro-batch", "--micro-batches", "8"])
    assert all(check["passed"] for check in checks.values()), checks
    assert checks["micro-batch 8, fp64"]["promised"] == 1e-10
    gradient = checks["micro-batch 8, fp32: gradient of one step"]
    assert 1e-5 <= gradient["promised"] < 0.1
