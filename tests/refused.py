"""What a person reads when something cannot work."""

import pytest

from eschernet_prior.base.errors import UserError


def refused(words: str):
    """Expects a `UserError` that is one sentence with these words: a line that ends in a full stop."""
    return pytest.raises(UserError, match=rf"^(?=.*{words})[^\n]{{30,}}\.$")
