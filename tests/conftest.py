"""What every test may count on: a known environment, what the markers mean, no silent skips where CI runs.

ADABATCH_NO_SKIP=1 turns every skip into a failure of the session; only tests marked needs_gpu may skip, and
their number is printed. ADABATCH_DATA names real data (torchvision's layout) for the tests marked real_data;
without it they are not collected.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import slurm
from hypothesis import settings


def _know_the_environment() -> str:
    """Take away what a developer's or a cluster's shell would change in the tests; return the scratch folder.

    Runs before any test module is imported: OpenMP reads its variable once, when torch is imported.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # nobody watches the threads of a process that tests
    # A shell's `command &` ignores Ctrl-C, nohup a hangup, and so would all that a test starts and stops.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    # Under pytest-xdist the workers inherit the changed environment, so the real value is kept beside it.
    os.environ.setdefault("ADABATCH_REAL_DATA", os.environ.get("ADABATCH_DATA", ""))
    for name in list(os.environ):
        if name.startswith(("WANDB_", "SLURM_", "SBATCH_", "SUBMITIT_", "HYDRA_")):
            del os.environ[name]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
                 "ADABATCH_LOCAL", "ADABATCH_LISTEN_FD"):  # fmt: skip
        os.environ.pop(name, None)
    scratch = tempfile.mkdtemp(prefix="adabatch-tests-")
    # Downloads and caches never reach the user's own data; a key in ~/.netrc would send test runs to W&B.
    os.environ["ADABATCH_DATA"] = os.path.join(scratch, "data")
    os.environ["ADABATCH_CACHE"] = os.path.join(scratch, "cache")
    os.environ["NETRC"] = os.path.join(scratch, "netrc")
    return scratch


SCRATCH = _know_the_environment()
# The same examples every time, and no limit of time: a busy machine holds any of them up.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")
UNEXCUSED = pytest.StashKey[list[str]]()
EXCUSED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR and MNIST, for tests marked real_data."""
    return Path(os.environ["ADABATCH_REAL_DATA"])


@pytest.fixture(scope="session")
def user_signal_cluster():
    """See `cluster`; this one as it is, for fixtures of a wider scope."""
    one = slurm.Cluster()
    yield one
    one.close()


@pytest.fixture(scope="session")
def sigterm_cluster():
    one = slurm.Cluster("--no-user-signal")
    yield one
    one.close()


@pytest.fixture(scope="session")
def patient_cluster():
    """It takes a silent node for lost long after the ranks do, as most clusters."""
    one = slurm.Cluster("--timeout=90")
    yield one
    one.close()


@pytest.fixture
def cluster(user_signal_cluster):
    """A SLURM of four nodes (tests/slurm.py) without jobs, for tests marked slurm.

    One per worker of the suite. A job that is preempted gets the signal of its --signal option first.
    """
    yield user_signal_cluster
    user_signal_cluster.tidy()


@pytest.fixture
def cluster_sigterm(sigterm_cluster):
    """The same, but a job that is preempted gets SIGTERM only, as on many clusters."""
    yield sigterm_cluster
    sigterm_cluster.tidy()


def pytest_configure(config):
    config.stash[UNEXCUSED], config.stash[EXCUSED] = [], []


def pytest_unconfigure(config):
    shutil.rmtree(SCRATCH, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    if os.environ["ADABATCH_REAL_DATA"]:
        return
    left_out = [item for item in items if item.get_closest_marker("real_data")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("real_data")]


def pytest_runtest_setup(item):
    if item.get_closest_marker("needs_gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


class _Skips:
    """Notes every skip; registered on its own so that the two hooks below share one list."""

    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            kind = EXCUSED if "needs_gpu" in report.keywords else UNEXCUSED
            self.config.stash[kind].append(f"{report.nodeid}: {_reason(report)}")

    def pytest_collectreport(self, report):
        if report.skipped:  # a whole module, by importorskip or skip(allow_module_level=True)
            self.config.stash[UNEXCUSED].append(f"{report.nodeid}: {_reason(report)}")


def _reason(report) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_sessionstart(session):
    session.config.pluginmanager.register(_Skips(session.config), "adabatch-skips")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    passed = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if _no_skips() and session.config.stash[UNEXCUSED] and passed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    excused, unexcused = config.stash[EXCUSED], config.stash[UNEXCUSED]
    if excused:
        terminalreporter.write_line(f"needs_gpu: {len(excused)} skipped, no CUDA device here")
    if _no_skips() and unexcused:
        terminalreporter.section("skipped, which ADABATCH_NO_SKIP=1 counts as failed", red=True)
        for line in unexcused:
            terminalreporter.write_line(line)


def _no_skips() -> bool:
    return os.environ.get("ADABATCH_NO_SKIP") == "1"
