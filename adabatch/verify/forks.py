"""A process in which torch is imported and nothing else has happened: each run is forked from it.

That saves importing torch for every run (2 to 8 s). No operator runs in it, no thread is started and no
module of the user's is imported, so a child is as good as a fresh process (`sweep.may_fork`). Linux only;
elsewhere runs are started afresh.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback

from adabatch.environment import before_torch


class Forks:
    """The client. environment: of the children."""

    def __init__(self, environment: dict):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "adabatch.verify.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, text=True, process_group=0,
        )  # fmt: skip
        self.pid = None  # of the child that runs

    def __call__(self, module: str, arguments: list[str], output) -> int:
        """Runs `python -m module arguments` with its words in `output`; its exit code (-9: SIGKILL)."""
        request = {"module": module, "arguments": arguments, "output": str(output)}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        self.pid = int(self._line())
        code = int(self._line())
        self.pid = None
        return code

    def _line(self) -> str:
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks runs has ended (code {self.server.wait()})")
        return line

    def close(self, patience: float = 10.0) -> None:
        """Ends the server, and a child that still runs: it may save, then it is killed."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)
        with contextlib.suppress(OSError, ValueError):
            self.server.stdin.close()  # it ends when its child has
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.wait(patience)
        for pid in (self.pid, self.server.pid):
            if pid and self.server.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
        self.server.wait()
        self.server.stdout.close()


def serve() -> None:
    """Until standard input ends: a request per line, answered by the child's number and its exit code."""
    before_torch()
    import torch  # noqa: F401

    import adabatch.train  # noqa: F401

    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                child(request)
            print(pid, file=answers, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def child(request: dict) -> None:
    """The whole life of a run."""
    code = 1
    try:
        os.setpgid(0, 0)
        words = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, source in ((0, nothing), (1, words), (2, words)):
            os.dup2(source, number)
        sys.stdin = open(0, closefd=False)  # the server's has read ahead
        sys.argv = [request["module"], *request["arguments"]]
        if request["module"] == "adabatch":
            from adabatch.__main__ import main
        else:
            from adabatch.verify.expected import main
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
