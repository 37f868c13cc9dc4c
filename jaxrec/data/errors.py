"""The error that every reader raises."""


class DataError(ValueError):
  """Unusable input; the message names the file, what is wrong, and what to do."""
