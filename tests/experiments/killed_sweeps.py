"""A sweep killed at random moments, then finished by two processes at once: killed_sweeps.py SEED KILLS ARGUMENT...

Each attempt is a fork that kills itself (SIGKILL) after a number of batches and renamings of files that is drawn.
Prints these numbers, and for each training the process that it runs in.
"""

import os
import random
import signal
import sys

from killed_runs import killed_after

from experiments import sweep, train


def start(arguments, count=None):
    """Run the sweep in a fork, killed after `count` events if there is one; return the process's id."""
    pid = os.fork()
    if pid:
        return pid
    if count is not None:
        killed_after(count)
    original = train._run

    def counted(config, *arguments):
        print("trains", os.getpid(), config.quantizer.name, config.seed, flush=True)
        original(config, *arguments)

    train._run = counted
    sys.argv = ["sweep", *arguments]
    try:
        sweep.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    sys.stdout.flush()
    os._exit(status)


def main():
    seed, kills, *arguments = sys.argv[1:]
    numbers = random.Random(int(seed))
    killed = []
    while len(killed) < int(kills):
        count = numbers.randrange(3, 12)
        _, status = os.waitpid(start(arguments, count), 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the sweep ended before it was killed"
        killed.append(count)
    print("killed after", *killed, "events", flush=True)
    both = [start(arguments), start(arguments)]
    statuses = [os.waitpid(pid, 0)[1] for pid in both]
    print("finished by", *both)
    sys.exit(max(os.WEXITSTATUS(status) for status in statuses))


if __name__ == "__main__":
    import bnn.training  # noqa: F401, before the forks

    main()
