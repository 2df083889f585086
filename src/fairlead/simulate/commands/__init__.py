"""The commands that simulate: ``simulate``, ``compare``, ``experiment`` and ``verify``."""
