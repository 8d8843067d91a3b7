"""Several ranks on this machine: the same command line once more for each, with torchrun's variables."""

import os
import socket
import subprocess
import sys
import time

from adabatch.places import of_local

GRACE = 30.0  # seconds for the others to end when one has failed


def started(line: list[str], count: int) -> int:
    """Starts `count` processes of the command and waits for them; the greatest exit code."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        children = []
        try:
            for rank in range(count):
                variables, descriptors = of_local(rank, count, listening)
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "adabatch.profiling", *line],
                        env={**os.environ, **path, **variables},
                        pass_fds=descriptors,
                    )
                )
            return _ended(children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()


def _ended(children: list) -> int:
    """Waits for all; once one has failed, the others for GRACE seconds."""
    until = None
    while any(child.poll() is None for child in children):
        if until is None and any(child.poll() for child in children):
            until = time.monotonic() + GRACE
        if until is not None and time.monotonic() > until:
            break
        time.sleep(0.05)
    codes = [1 if child.poll() is None or child.poll() < 0 else child.poll() for child in children]
    return max(codes)
