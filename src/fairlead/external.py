"""Policies that other packages offer, found by their entry points.

A package declares, for instance::

    [project.entry-points."fairlead.routing"]
    warmest = "my_package.warmest:Warmest"

and ``--policy warmest`` works in every command. Looking costs some milliseconds, so it is done only
when a name is asked for that is not one of fairlead's own, or when all names are listed.
"""

from collections.abc import Iterator

from fairlead.core.registry import External


def entry_points(group: str) -> Iterator[External]:
    """Yield the policies of all installed packages in ``group``, by name and package."""
    from importlib.metadata import entry_points as installed  # noqa: PLC0415 - 20 ms that few commands need

    found = sorted(
        installed(group=group), key=lambda point: (point.name, point.dist.name if point.dist else "")
    )
    for point in found:
        yield External(point.name, point.dist.name if point.dist else "unknown", point.load)
