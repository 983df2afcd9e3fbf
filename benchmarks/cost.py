"""What running one of the project's scripts costs: seconds by the clock, CPU seconds, peak memory."""

import json
import sys
from typing import NamedTuple

import cli

# A process begins with the peak of the one that starts it, and a benchmark's is large: a small one stands between.
BETWEEN = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
sys.exit(code)
"""


class Cost(NamedTuple):
    """Of a script with the processes that it started."""

    seconds: float
    cpu_seconds: float
    peak_mib: float  # of the largest of its processes


def cost_of(script: str, *arguments) -> Cost:
    """Run a script as a user would.

    Raises:
        ValueError: it failed; its last line says why.
    """
    return Cost(*json.loads(cli.call(script, *arguments, through=(sys.executable, "-c", BETWEEN))))
