"""The command line with a SIGKILL planted in it, to see on any run that repeating the command loses nothing:

python tests/killed_run.py --at-step 1564 -- dataset=cifar10 model=resnet schedule=adabatch epochs=3
python tests/killed_run.py --in-checkpoint 2 -- ...     (inside the second write of a checkpoint)
adabatch ...                                             (the same command again goes on)
"""

import argparse
import os
import signal
import sys


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(number: int) -> None:
    """Die right after step `number` of the run, before anything of it is saved."""
    from adabatch.record import Record

    noted = Record.note_step

    def counted(self, *args):
        noted(self, *args)
        if self.steps == number:
            die()

    Record.note_step = counted


def in_checkpoint(number: int) -> None:
    """Die when half of the `number`-th checkpoint of this process is on the disk."""
    import torch

    from adabatch import checkpoint

    write, count = checkpoint._write, [0]

    def half(path, value):
        count[0] += 1
        if count[0] < number:
            return write(path, value)
        temporary = path.with_name(path.name + ".tmp")
        torch.save(value, temporary)
        os.truncate(temporary, temporary.stat().st_size // 2)
        die()

    checkpoint._write = half


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--at-step", type=int)
    parser.add_argument("--in-checkpoint", type=int)
    cut = sys.argv.index("--")
    asked = parser.parse_args(sys.argv[1:cut])
    if asked.at_step:
        at_step(asked.at_step)
    if asked.in_checkpoint:
        in_checkpoint(asked.in_checkpoint)
    from adabatch.__main__ import command

    sys.exit(command(sys.argv[cut + 1 :]))


if __name__ == "__main__":
    main()
