"""The folder of a sandbox: its options, and the files that SLURM's daemons and its users read."""

import fcntl
import json
import os
import shutil
import string
import time
from contextlib import contextmanager
from pathlib import Path

from machines import CONTROLLER, Problem

HERE = Path(__file__).resolve().parent
# slurmstepd listens on a socket of this name in DIR; the whole path has 107 bytes at the most.
LONGEST = 107 - len("/spool/node99/node99_67108863.4294967290")


def check_place(directory: Path) -> None:
    text = str(directory)
    if len(os.fsencode(text)) > LONGEST:
        raise Problem(f"DIR is at most {LONGEST} bytes long, because of sockets in it: {text} is longer")
    if strange := sorted(set(text) & set(" \t\n\"'#,$\\[]")):
        raise Problem(
            f"SLURM's configuration cannot hold {strange[0]!r}, which is in {text!r}: take another DIR"
        )
    if is_foreign(directory):
        raise Problem(f"{directory} holds something else: name a new or an empty folder")


def is_sandbox(directory: Path) -> bool:
    return (directory / "sandbox.json").exists()


def is_foreign(directory: Path) -> bool:
    """Something that no sandbox made, and that is not an empty folder either."""
    if not directory.is_dir():
        return directory.exists()
    return any(directory.iterdir()) and not is_sandbox(directory)


@contextmanager
def locked(directory: Path):
    """One command at a time changes a sandbox."""
    with (directory / "sandbox.json").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stored(directory: Path) -> dict:
    """{"options": ..., "subnet": "198.18.5"}; empty where `up` has not come that far."""
    text = (directory / "sandbox.json").read_text() if is_sandbox(directory) else ""
    return json.loads(text) if text else {}


def nodes(directory: Path) -> dict[str, str]:
    """{name: address} of all nodes, up or not."""
    known = stored(directory)
    if not known:
        raise Problem(f"{directory} is not a sandbox: start one there with `up`")
    return _nodes(known["options"]["nodes"], known["subnet"])


def _nodes(count: int, subnet: str) -> dict[str, str]:
    return {f"node{i}": f"{subnet}.{10 + i}" for i in range(1, count + 1)}


def write(directory: Path, options: dict, subnet: str) -> None:
    """Every file, for the addresses SUBNET.2 (controller), SUBNET.11 (node1), ..."""
    (directory / "sandbox.json").write_text(json.dumps({"options": options, "subnet": subnet}))
    for name in ("etc", "run", "log", "state", "spool", "bin", "dev"):
        (directory / name).mkdir(exist_ok=True)
    etc = directory / "etc"
    hosts = {CONTROLLER: f"{subnet}.2"} | nodes(directory)
    lines = [f"{address} {name}\n" for name, address in hosts.items()]
    (etc / "hosts").write_text(Path("/etc/hosts").read_text() + "".join(lines))
    if not (etc / "munge.key").exists():
        (etc / "munge.key").touch(mode=0o600)
        (etc / "munge.key").write_bytes(os.urandom(128))
    _slurm(directory, options, subnet)
    _for_users(directory)


def _slurm(directory: Path, options: dict, subnet: str) -> None:
    text = string.Template((HERE / "slurm.conf").read_text()).substitute(
        dir=directory,
        subnet=subnet,
        grace=options["grace"],
        timeout=options["timeout"],
        first_job=int(time.time()) % 60_000_000 + 1000,  # an id is below 2^26
        controller_parameters="SlurmctldParameters=preempt_send_user_signal" * options["user_signal"],
    )
    gpus = options["gpus"]
    for name, address in nodes(directory).items():
        (directory / "spool" / name).mkdir(exist_ok=True)
        has = f"CPUs={options['cpus']} RealMemory=65536" + f" Gres=gpu:{gpus}" * bool(gpus)
        text += f"NodeName={name} NodeAddr={address} {has}\n"
    (directory / "etc/slurm.conf").write_text(text)
    for i in range(gpus):  # slurmd insists on character devices
        (directory / f"dev/nvidia{i}").unlink(missing_ok=True)
        (directory / f"dev/nvidia{i}").symlink_to("/dev/null")
    devices = f"Name=gpu File={directory}/dev/nvidia[0-{gpus - 1}]\n" * bool(gpus)
    (directory / "etc/gres.conf").write_text(f"AutoDetect=off\n{devices}")


def _for_users(directory: Path) -> None:
    shutil.copy(HERE / "sacct", directory / "bin/sacct")
    (directory / "env.sh").write_text(
        f"export SLURM_CONF={directory}/etc/slurm.conf\n"
        f'case ":$PATH:" in *:{directory}/bin:*) ;; *) export PATH="{directory}/bin:$PATH" ;; esac\n'
    )
