"""The sandbox's conftest.py. It imports what is slow to import, and credits the work of shared fixtures to each user.

mutmut tries a mutant on the tests that reached its function. A fixture of a module or a session runs once, in the first
test that asks for it. mutmut would credit what it reached to this test only.
"""

import bitsandbytes  # noqa: F401 - imported once, before the forks; otherwise each mutant would import it again
import peft  # noqa: F401
import pytest
import torch  # noqa: F401
from mutmut.state import state
from transformers import MistralForCausalLM  # noqa: F401

REACHED = {}  # {fixture: names of the functions that it reached}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Notes what the fixture reaches."""
    reached = state()._stats
    before = set(reached)
    reached.clear()
    try:
        return (yield)
    finally:
        REACHED[fixturedef] = set(reached)
        reached |= before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    """Adds it to what each test reached that uses the fixture."""
    for name in item.fixturenames:
        for fixture in item._fixtureinfo.name2fixturedefs.get(name, ()):
            state()._stats.update(REACHED.get(fixture, ()))
