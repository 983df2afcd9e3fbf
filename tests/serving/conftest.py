"""What the live page's thread sets for itself, for tests that call its parts; other tests have it as it was."""

import pytest
import torch


@pytest.fixture(autouse=True)
def as_in_the_engines_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
