"""The one exception that a person, not a programmer, is meant to read."""


class UserError(ValueError):
    """A person's mistake, told in one sentence that says what to do about it.

    Stages raise it before long work starts; the nerfstudio edge turns it into that sentence and exit status 1.
    """
