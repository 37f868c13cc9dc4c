"""Sections `Example:` of docstrings are read as examples, not as a box of text."""

import griffe


class Examples(griffe.Extension):
  """Griffe knows the heading in the plural only."""

  def on_instance(self, *, obj, **kwargs):
    """Renames the heading of every docstring."""
    if obj.docstring:
      obj.docstring.value = obj.docstring.value.replace('\nExample:\n', '\nExamples:\n')
