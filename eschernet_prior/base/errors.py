"""UserError: an input error reported as one sentence, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error in the user's input, whose message is one sentence that says what is wrong and what to do.

    Raised before long work starts; commands print the message and exit with status 1 (`exit_on_user_error`).
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print the message of a UserError and exit with status 1, without a traceback."""
    try:
        yield
    except UserError as error:
        from nerfstudio.utils.rich_utils import CONSOLE  # modules without nerfstudio import this one

        CONSOLE.print(str(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
