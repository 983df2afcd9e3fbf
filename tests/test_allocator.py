"""Memory that is freed is used again without a page fault, until it is given back."""

import platform
import subprocess
import sys

import pytest

import cli

SCRIPT = """
import resource, sys
import cli, allocator

def main():
    def fill():
        return [b"x" * 2**24 for _ in range(6)]
    fill()
    faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        fill()
    faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    before = resident()
    allocator.give_back()
    print(faults, before - resident())

cli.run(main) if sys.argv[1] == "kept" else main()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.parametrize("kept", [True, False])
def test_what_a_script_frees_is_used_again_and_given_back_when_asked(kept):
    command = (sys.executable, "-c", SCRIPT, "kept" if kept else "not")
    done = subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=True)
    faults, given_back = map(int, done.stdout.split())
    assert (faults < 100) == kept
    if kept:
        assert given_back > 80 * 2**20
