"""The one exception that a person, not a programmer, is meant to read, and how a command ends on it."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A person's mistake, told in one sentence that says what to do about it.

    Stages raise it before long work starts; the nerfstudio edge turns it into that sentence and exit status 1.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a person's mistake into its one sentence and exit status 1, without a stack trace."""
    try:
        yield
    except UserError as error:
        from nerfstudio.utils.rich_utils import CONSOLE  # the maths, which raises, imports no nerfstudio

        CONSOLE.print(str(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
