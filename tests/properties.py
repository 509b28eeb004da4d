"""How many examples the property tests try, and which.

The profile `fixed` is the default: the same examples on every machine, so that a suite that passed does not fail
tomorrow. `HYPOTHESIS_PROFILE=explore uv run pytest -n0 -m hypothesis --timeout 0` tries many random ones.
"""

import os

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
MULTIPLES = {"fixed": 1, "explore": 200}
"""Examples of a profile as a multiple of what a test asks for."""

settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, print_blob=True)
settings.load_profile(PROFILE)


def examples(count: int) -> settings:
    """Settings of a property test that tries `count` examples by default."""
    return settings(settings.get_profile(PROFILE), max_examples=count * MULTIPLES[PROFILE])
