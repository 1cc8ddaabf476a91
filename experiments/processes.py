"""Several processes that train one run: the first is the command, the others follow it.

With trainer.devices above 1 the command starts the others itself, on its own machine. Under torchrun all are there
already, maybe on several machines, and those of a rank above 0 wait here. Either way the first process alone reads
the command line, holds and writes the run's folder, and tells the others the config of each training.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config_values import ConfigError

# How long a process that failed is given to be noticed by the first one's own means, in seconds.
GRACE = 20.0
# How long the others wait for the next training: the first may wait for a lock.
_PATIENCE = timedelta(days=365)

_told = 0


def by_torchrun() -> bool:
    """Return whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Return whether torchrun started this process, and it is not the first."""
    return by_torchrun() and int(os.environ["RANK"]) > 0


def torchrun_command(command: str) -> str:
    """Return a command with the torchrun that started this process in front; without one, the command."""
    if not by_torchrun():
        return command
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    options = f"--nnodes={int(os.environ['WORLD_SIZE']) // here} --nproc-per-node={here}"
    _, _, arguments = command.partition("train")
    return f"torchrun {options} -m experiments.train{arguments}"


def _store() -> Any:
    """Return what torchrun's processes share, in which the first says what is to be done."""
    import torch

    store, _, _ = next(torch.distributed.rendezvous("env://"))
    return torch.distributed.PrefixStore("bitplanes", store)


def _tell(text: str) -> None:
    global _told
    _store().set(str(_told), text)
    _told += 1


def follow() -> None:
    """Take part in every training that the first process tells of, until it says that there are no more."""
    number = 0
    while True:
        store = _store()
        store.wait([str(number)], _PATIENCE)
        text = store.get(str(number)).decode()
        if not text:
            return
        take_part(text)
        number += 1


def dismiss() -> None:
    """Say that there are no more trainings; only the first process of torchrun's says it."""
    if by_torchrun():
        _tell("")


def take_part(text: str) -> None:
    """Train the config of a text (YAML) as one of several processes; ends the process if it cannot."""
    from bnn.data import DataError
    from bnn.training import DivergenceError, RunError
    from experiments.run_parts import build_parts, trained

    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    try:
        trained(config, build_parts(config))
    except DivergenceError:
        pass  # which all processes notice, and the first tells
    except (ConfigError, DataError, RunError, OSError, ValueError) as error:
        print(f"error in process {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def others(config: dict[Any, Any], processes: int) -> Iterator[None]:
    """Let the other processes train a resolved config together with what is done inside; does nothing for one process.

    RunError if one of them failed.
    """
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    if processes == 1:
        yield
    elif by_torchrun():
        _tell(text)
        yield
    else:
        with _started(text, processes):
            yield


@contextlib.contextmanager
def _started(text: str, processes: int) -> Iterator[None]:
    """Start the other processes on this machine, and end them when this one has ended its part, however."""
    import torch

    from bnn.training import DivergenceError, RunError

    with _environment(processes):
        helpers = [_start(text, rank) for rank in range(1, processes)]
        closing = threading.Event()
        watch = threading.Thread(target=_watch, args=(helpers, closing), daemon=True)
        watch.start()
        try:
            yield
            for helper in helpers:
                helper.wait(GRACE)
        except RuntimeError as error:
            if not isinstance(error, DivergenceError | RunError) and (failed := _failed(helpers, 5.0)):
                raise RunError(failed) from error
            raise
        finally:
            closing.set()
            watch.join()
            for helper in helpers:
                _end(helper)
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _environment(processes: int) -> Iterator[None]:
    """Say in the environment that this process is the first of so many, as Lightning reads it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {"LOCAL_RANK": 0, "NODE_RANK": 0, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update({name: str(value) for name, value in ours.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _start(text: str, rank: int) -> subprocess.Popen[str]:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    helper = subprocess.Popen(
        [sys.executable, "-c", "from experiments.processes import help_the_first; help_the_first()"],
        env=os.environ | {"LOCAL_RANK": str(rank), "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the first, which ends the others
    )
    assert helper.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        helper.stdin.write(json.dumps(text) + "\n")
        helper.stdin.flush()
    return helper


def _failed(helpers: list[subprocess.Popen[str]], seconds: float) -> str:
    """Return in words which process has failed, if one does so within some time."""
    for rank, helper in enumerate(helpers, 1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            if status := helper.wait(seconds):
                return (
                    f"process {rank} of {len(helpers) + 1} (from 0) ended with status {status}; what it said stands "
                    "above, and the same command goes on from the last checkpoint"
                )
    return ""


def _watch(helpers: list[subprocess.Popen[str]], closing: threading.Event) -> None:
    """End this process when another one has failed and nothing that it waits for in vain tells it so."""
    while not closing.wait(0.5):
        if any(helper.poll() for helper in helpers) and not closing.wait(GRACE):
            print(f"error: {_failed(helpers, 0.0)}", file=sys.stderr, flush=True)
            os._exit(2)


def _end(helper: subprocess.Popen[str]) -> None:
    assert helper.stdin is not None
    with contextlib.suppress(OSError):
        helper.stdin.close()  # by which it ends
    try:
        helper.wait(GRACE)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.wait()


def _end_with_the_first() -> None:
    """End this process when the first one has, whatever it is doing: when standard input ends."""
    sys.stdin.read()
    os._exit(0)


def help_the_first() -> None:
    """Take part in the training that the process which started this one writes on its standard input."""
    import bnn.training  # noqa: F401, Lightning sets its loggers up
    from experiments.train import quiet

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet()
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    take_part(told)
