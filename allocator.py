"""What the C library does with memory that is freed: glibc keeps it, or gives it back; others are left as they are."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 2**25  # bytes that glibc takes from its heap at most


def keep_freed() -> None:
    """From now on keep what is freed for the next use.

    As glibc is by itself, it gives large tensors back to the system when they are freed, and takes new pages for the
    next ones: up to 380,000 page faults in a training step of FLAV-S/2 (docs/performance.md).
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_THRESHOLD, LARGEST)


def give_back() -> None:
    """Give to the system what is free now."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
