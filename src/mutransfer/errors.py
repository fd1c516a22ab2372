"""The one exception that means "the input is wrong": its message is the single line a user needs."""


class InputError(ValueError):
    """Bad input from the user: one clear line that quotes it and says what to write instead.

    The command line prints the message without a traceback and exits with code 2.
    """
