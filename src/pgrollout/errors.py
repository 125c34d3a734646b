"""The one exception of this package: a sentence for the operator."""


class RolloutError(Exception):
    """What was found, what was expected and what to do, in one sentence without a traceback."""
