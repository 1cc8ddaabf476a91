"""What only Linux has is asked for in one place each, and the commands do without it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnn.machine import usable_cores
from experiments import process_memory

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("bnn", "kernels", "experiments", "paper_figures")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]

# Names of modules and of members of os and signal that macOS or Windows lack, and the files that guard them.
MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
MEMBERS = {
    *("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "mkfifo", "sched_getaffinity", "sched_setaffinity"),
    *("setsid", "sysconf", "uname", "wait", "waitpid", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "pthread_sigmask"),
}
GUARDED = {"bnn/machine.py", "kernels/bnn_kernels/runtime/threads.py", "kernels/bnn_kernels/runtime/arrays.py"}
SYSTEM_FILES = {
    "bnn/training/provenance.py",
    "kernels/bnn_kernels/runtime/arrays.py",
    "experiments/energy.py",
    "experiments/process_memory.py",
}

SMALL = ("model=digits_cnn", "model.width=4", "input_shape=[1,8,8]", "batch_size=3", "seconds=0.05")


def found_in(text):
    """("import", name), ("member", name) and ("file", path) of everything in a module that not every system has."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (("import", name) for name in names if name in MODULES)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("os", "signal") and node.attr in MEMBERS:
                yield "member", node.attr
        elif isinstance(node, ast.Constant) and str(node.value).startswith(("/proc/", "/sys/", "/dev/", "/tmp")):
            yield "file", node.value


def test_what_is_searched_for_is_found():
    text = (
        "import fcntl\nimport os, signal\nos.sched_getaffinity(0)\nsignal.SIGKILL\nopen('/proc/meminfo')\nos.getpid()"
    )
    expected = [("import", "fcntl"), ("member", "sched_getaffinity"), ("member", "SIGKILL"), ("file", "/proc/meminfo")]
    assert sorted(found_in(text)) == sorted(expected)


def test_what_not_every_system_has_is_used_in_guarded_places_alone():
    found = {(str(file.relative_to(ROOT).as_posix()), kind) for file in FILES for kind, _ in found_in(file.read_text())}
    allowed = {(file, "member") for file in GUARDED} | {(file, "file") for file in SYSTEM_FILES}
    assert found <= allowed


@pytest.fixture
def _elsewhere(monkeypatch, tmp_path):
    """A system without processor affinity and without /proc; what threads PyTorch had is put back."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.setattr(process_memory, "STATUS", tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_usable_cores(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5})
        assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("name", ["training_step", "activation_memory"])
def test_a_step_is_measured_on_other_systems(name, command):
    done = command(f"experiments.{name}", *SMALL, "threads=0", "output=out.json")
    assert done.status == 0, done.err
    content = json.loads(Path("out.json").read_text())
    assert content["threads"] == content["hardware"]["cores"] == os.cpu_count()
    assert "peak_growth_bytes" not in content
    assert ("peak of a step is left out" in done.out) == (name == "activation_memory")


@pytest.mark.usefixtures("_elsewhere")
def test_networks_are_timed_on_other_systems(command):
    tiny = ("batch_sizes=[1]", "threads=[1]", "seconds=0.02", "least_calls=1", "output=out.json")
    done = command("experiments.benchmark", "suite=networks", "networks=[digits_cnn]", *tiny)
    assert done.status == 0, done.err
    assert "memory is left out" in done.out
    content = json.loads(Path("out.json").read_text())
    assert [network["memory"] for network in content["networks"]] == [{}]
    assert content["latency"][0]["packed_us"]["median"] > 0


def test_kernels_run_without_processor_affinity():
    code = """
import os
for name in ("sched_getaffinity", "sched_setaffinity"):
    if hasattr(os, name):
        delattr(os, name)
import bnn_kernels as bk, numpy as np
bk.set_num_threads(2)
x, w = (np.random.default_rng(i).choice([-1, 1], shape) for i, shape in enumerate([(2, 64, 30, 30), (64, 64, 3, 3)]))
x, w = x.astype(np.float32), w.astype(np.float32)
print(np.array_equal(bk.PackedConv2d(w, padding=1)(x), bk.reference.conv2d(x, w, padding=1)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.skipif(not process_memory.is_measured(), reason="the system does not say")
def test_the_memory_of_this_process():
    import numpy as np

    before = process_memory.resident_bytes()
    array = np.ones(1 << 25)  # 256 MiB
    grown = process_memory.resident_bytes() - before
    assert 0.9 * array.nbytes < grown < 1.2 * array.nbytes
    assert process_memory.peak_bytes() >= before + 0.9 * array.nbytes


def test_a_process_that_fails_is_no_wait(monkeypatch):
    """What the other process raises is raised here, at once."""
    from omegaconf import OmegaConf

    from experiments.step_memory import peak_bytes

    with pytest.raises(Exception, match="model"):
        peak_bytes(OmegaConf.create({"threads": 1}), packs=False)
