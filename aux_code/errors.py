"""The one exception that stands for a mistake of the user's: wrong input, missing data, wrong
option."""


class UserError(Exception):
    """Wrong usage or input. The message names the file or parameter and says what to do; scripts
    exit with status 2."""
