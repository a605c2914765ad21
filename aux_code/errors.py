"""The one exception for a mistake of the user's: wrong input, missing data, wrong option."""


class UserError(Exception):
    """Wrong usage or input; the message names it and the remedy, scripts exit with status 2."""
