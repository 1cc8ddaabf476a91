"""Trains by the command again and again, killed at random moments, until it ends: killed_runs.py SEED MOST ARGUMENT...

Each attempt is a fork that kills itself (SIGKILL) at a number of events that is drawn: batches of training, validation
and test, and renamings of files. MOST bounds the number. Prints the events at which it was killed.
"""

import os
import pathlib
import random
import signal
import sys

from experiments import train


def killed_after(count):
    """Let this process kill itself at event number `count`."""
    from bnn.training import Classifier

    left = [count]

    def event(original):
        def counted(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return counted

    for owner, name in (
        (Classifier, "training_step"),
        (Classifier, "validation_step"),
        (Classifier, "test_step"),
        (pathlib.Path, "replace"),
    ):
        setattr(owner, name, event(getattr(owner, name)))


def main():
    seed, most, *arguments = sys.argv[1:]
    numbers = random.Random(int(seed))
    sys.argv = ["train", *arguments]
    killed = []
    while True:
        count = numbers.randrange(1, int(most))
        pid = os.fork()
        if pid == 0:
            killed_after(count)
            train.main()
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            print("killed at", *killed)
            sys.exit(os.WEXITSTATUS(status))
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed.append(count)


if __name__ == "__main__":
    # What every attempt would import, before the forks.
    import sklearn.datasets  # noqa: F401

    import bnn.converter
    import bnn.training
    import experiments.run_parts  # noqa: F401

    bnn.convert  # noqa: B018, imported when it is asked for
    main()
