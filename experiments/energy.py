"""Energy of the CPU's packages, as Linux' powercap counts it (RAPL); most virtual machines hide it."""

import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def package_counters() -> dict[Path, int]:
    """Return {file of a package's microjoules so far: where its count begins again}; {} where nothing can be read."""
    found = {}
    for zone in sorted(POWERCAP.glob("*-rapl:*")):
        if zone.name.count(":") != 1:
            continue  # a part of a package
        try:
            if (zone / "name").read_text().startswith("package"):
                file = zone / "energy_uj"
                int(file.read_text())  # some systems let root alone read it
                found[file] = int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
    return found


def microjoules_a_call(function: Callable[[], object], seconds: float) -> float | None:
    """Return the microjoules of all packages during a call, idle power included; None where they are not told.

    The function is called again and again for so many seconds; whatever else the machine does then is counted too.
    """
    counters = package_counters()
    if not counters:
        return None
    before = {file: int(file.read_text()) for file in counters}
    calls, end = 0, time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < end:
        function()
        calls += 1
    spent = 0
    for file, full in counters.items():
        difference = int(file.read_text()) - before[file]
        spent += difference if difference >= 0 else difference + full
    return spent / calls
