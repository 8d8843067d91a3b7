"""experiment=compare as a user starts it: killed in the middle and repeated, and on a cluster."""

import json
import re
import subprocess
import sys
import time

import pytest
import slurm
import slurm_runs

from adabatch import runs

REAL = (
    "-m", "experiment=compare", "dataset=digits", "dataset.limit=512", "epochs=2", "hardware=cpu",
    "hardware.threads=1", "compare.looks=[2]", "compare.arms=[fixed,adaptive]", "compare.ladder=16",
    "trackers.wandb.mode=disabled", "checkpoint.every_seconds=0", "hydra.sweep.dir=sweep",
)  # fmt: skip


@pytest.mark.slow
def test_killed_in_the_middle_and_repeated(tmp_path):
    """The whole program: the sweeper is killed by SIGKILL in its second run, and the same command goes on."""
    command = [sys.executable, "-m", "adabatch", *REAL]
    given = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **given)
    until = time.monotonic() + 120
    while len(list((tmp_path / "sweep").glob("*/checkpoint.pt"))) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.communicate()
    done = subprocess.run(command, timeout=200, check=False, **given)
    assert done.returncode == 0, done.stdout
    found = [runs.Run(path.parent) for path in sorted((tmp_path / "sweep").glob("*/config.yaml"))]
    assert len(found) == 6 and all(run.state == "finished" for run in found)
    begun = [len(re.findall(" INFO hardware", (run.folder / "log.txt").read_text())) for run in found]
    assert sorted(begun)[:5] == [1] * 5 and max(begun) <= 2, "no run was made twice"
    assert all(sum(r["batch_size"] for r in run.rows if r["event"] == "train") == 1024 for run in found)
    assert json.loads((tmp_path / "sweep" / "report.json").read_text())["decision"] != "interim"


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cluster_runs_both_stages_and_the_verdict_follows(cluster, tmp_path):
    """Without waiting each command submits what can run; the last one finds all done."""
    given = [o for o in REAL if not o.startswith(("hardware=", "compare.arms="))]
    line = [*slurm.ADABATCH, *given, "hardware=slurm", "schedule=noise_scale"]
    line.append("compare.arms=[adaptive,mean_matched]")
    first = cluster.run(*line, cwd=tmp_path, seconds=120)
    found = slurm_runs.listed(first.stdout)
    assert len(found) == 2 and "the same command goes on" in first.stdout
    cluster.until(lambda: all(runs.Run(tmp_path / f).state == "finished" for _, f in found), 120)
    second = cluster.run(*line, "wait=true", cwd=tmp_path, seconds=160)
    assert len(slurm_runs.listed(second.stdout)) == 2, second.stdout
    arms = {a["arm"]: a["finished"] for a in json.loads((tmp_path / "sweep/report.json").read_text())["arms"]}
    assert arms == {"noise_scale": 2, "mean-matched to noise_scale": 2}
