"""A SLURM cluster of the suite's own, for tests marked slurm: launch/sandbox by fixtures.

def test_something(cluster, tmp_path):
    job = cluster.train("epochs=1", f"hydra.run.dir={tmp_path}/run", nodes=2)
    assert cluster.wait_for(job, "COMPLETED")["ExitCode"] == "0:0", cluster.log(job)
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

SANDBOX = Path(__file__).resolve().parent.parent / "launch/sandbox/sandbox.py"
ADABATCH = (sys.executable, "-m", "adabatch")
# A job in one of these goes nowhere else; a preempted one, or one of a lost node, still comes back.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}


class Cluster:
    """node1 to node4, partitions main and urgent; what it writes and the jobs' output goes with it."""

    nodes = ("node1", "node2", "node3", "node4")

    def __init__(self, *options: str):
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-"))
        # It takes itself down when this process ends, however it ends: the pipe is closed then.
        self.holder = subprocess.Popen(
            [sys.executable, SANDBOX, "up", self.directory, "--hold", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if not self.holder.stdout.readline().startswith("up:"):
            error = self.holder.communicate()[1]
            shutil.rmtree(self.directory, ignore_errors=True)
            if self.holder.returncode == 3:
                pytest.skip(error.strip())
            raise RuntimeError(error)
        self.folder = self.directory / "work"  # of the jobs; commands run in it
        self.folder.mkdir()
        path = (self.directory / "bin", Path(sys.executable).parent, os.environ["PATH"])
        self.environment = os.environ | {
            "PATH": os.pathsep.join(map(str, path)),  # SLURM's programs, the stand-in for sacct, adabatch
            "SLURM_CONF": str(self.directory / "etc/slurm.conf"),
        }

    def close(self) -> None:
        """Take it down. A line, because a forked child may still hold the pipe open."""
        error = self.holder.communicate("down\n", timeout=120)[1]
        assert self.holder.returncode == 0, f"{self.directory} did not go down: {error}"

    def run(self, *command, check: bool = True, seconds: float = 60, **given) -> subprocess.CompletedProcess:
        """A command on the submitting host, its output as text; where it fails, an error that shows it."""
        given = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True} | given
        done = subprocess.run([str(word) for word in command], timeout=seconds, **given)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def submit(self, script: str, *options: str) -> str:
        """sbatch of these lines of shell; the job's id. Options: "--nodes=2", "--array=0-5%2", ..."""
        file = self.folder / f"{time.monotonic_ns()}.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        name = "%A_%a.out" if any(option.startswith("--array") for option in options) else "%A.out"
        return self.run("sbatch", "--parsable", f"--output={name}", *options, file).stdout.strip()

    def train(self, *overrides: str, nodes: int = 1, tasks: int = 1, options=()) -> str:
        """A job that trains, `tasks` processes on each node, by srun; the job's id."""
        command = ("srun", "--kill-on-bad-exit=1", *ADABATCH, *overrides)
        shape = (f"--nodes={nodes}", f"--ntasks-per-node={tasks}")
        return self.submit(shlex.join(command), *shape, "--open-mode=append", *options)

    def log(self, job: str) -> str:
        """What the job has written so far, all tasks of an array."""
        names = (f"{job}.out", f"{job}_*.out")
        return "".join(path.read_text() for name in names for path in sorted(self.folder.glob(name)))

    def tasks(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` says: a dict for a job, or for each task of an array with its own line."""
        text = self.run("scontrol", "-o", "show", "job", job).stdout
        return [dict(part.split("=", 1) for part in re.split(r" (?=[A-Z][\w/:]*=)", line))
                for line in text.splitlines() if line.startswith("JobId=")]  # fmt: skip

    def job(self, job: str) -> dict[str, str]:
        """The same of one job: JobState, Restarts, ExitCode "1:0", NodeList, Reason, ..."""
        (one,) = self.tasks(job)
        return one

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Until the job, or every task of an array, is in one of the states; the (last) job's fields then."""

        def there():
            found = self.tasks(job)
            now = {task["JobState"] for task in found}
            lost = now <= FINAL and not now <= set(states)
            assert not lost, f"job {job} is {now}, not {states}\n{found}\n{self.log(job)[-3000:]}"
            return found[-1] if now <= set(states) else None

        def instead():
            return f"job {job} is not {states}: {self.tasks(job)}\n{self.log(job)[-3000:]}"

        return self.until(there, seconds, instead)

    def until(self, arrived, seconds: float = 60, what=lambda: "it did not happen"):
        """The first true answer of arrived(); an error that says what() after so many seconds."""
        end = time.monotonic() + seconds
        while not (answer := arrived()):
            assert time.monotonic() < end, f"after {seconds} s {what()}"
            time.sleep(0.1)
        return answer

    def sandbox(self, command: str, *words: str, **given) -> subprocess.CompletedProcess:
        return self.run(sys.executable, SANDBOX, command, self.directory, *words, **given)

    def exec(self, node: str, *command: str, **given) -> subprocess.CompletedProcess:
        """A command inside a node; mounts made there show there only."""
        return self.sandbox("exec", node, *command, **given)

    def cut(self, node: str) -> None:
        """Power cut; SLURM notices after about 30 s. At once, but without the cut: fail(node)."""
        self.sandbox("cut", node)

    def fail(self, node: str) -> None:
        """SLURM takes the node for lost, at once and until start(node): its jobs are killed and requeued."""
        for state in ("drain", "down"):  # down alone lasts only until slurmd, which lives, is heard of again
            self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    def start(self, node: str) -> None:
        """Back after cut or fail."""
        self.sandbox("start", node, seconds=90)

    def throttle(self, node: str, rate: str) -> None:
        """A node's link, or those of "all", each way: "200mbit", or "off"."""
        self.sandbox("throttle", node, rate)

    def node_state(self, node: str) -> str:
        """idle, mixed, allocated, completing, down, ..., with a "*" while it does not answer."""
        return self.run("sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%T").stdout.strip()

    def tidy(self) -> None:
        """No jobs, every node idle, no throttle: what each test finds."""
        if jobs := self.run("squeue", "-h", "-o", "%A").stdout.split():
            self.run("scancel", "--full", "--signal=KILL", *set(jobs), check=False)
            self.run("scancel", *set(jobs), check=False)
        self.throttle("all", "off")
        for node in self.nodes:
            if self.node_state(node) != "idle":
                self.start(node)
        self.until(lambda: not self.run("squeue", "-h").stdout, 60, lambda: self.run("squeue").stdout)
