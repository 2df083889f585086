"""Writes down what happens in a simulation, as the ``Run`` that reports are made from."""

from array import array

from fairlead.report.run import UNFINISHED, Requests, Series

_GROW = 16_384


class Rows:
    """The columns of ``Requests``, grown in large pieces; a row is written in place as facts come."""

    __slots__ = (
        "_room", "arrived", "cached", "client", "columns", "count", "ended", "first", "outcome", "output",
        "prompt", "sent", "worker",
    )  # fmt: skip

    def __init__(self) -> None:
        self.columns = columns = Requests()
        # The columns grow in place; as attributes here they are quicker to reach
        self.client, self.arrived, self.sent = columns.client, columns.arrived, columns.sent
        self.first, self.ended, self.outcome = columns.first, columns.ended, columns.outcome
        self.prompt, self.cached, self.output = columns.prompt, columns.cached, columns.output
        self.worker = columns.worker
        self.count = 0
        self._room = 0

    def new(self, client: int, arrived: int, prompt: int) -> int:
        """Begin a row and return its number."""
        row = self.count
        self.count += 1
        if row == self._room:
            self._grow()
        self.client[row] = client
        self.arrived[row] = arrived
        self.prompt[row] = prompt
        return row

    def _grow(self) -> None:
        columns = self.columns
        self._room += _GROW
        for column, value in (
            (columns.client, 0), (columns.arrived, 0), (columns.sent, -1), (columns.first, -1),
            (columns.ended, -1), (columns.prompt, 0), (columns.cached, 0), (columns.output, 0),
            (columns.worker, -1), (columns.outcome, UNFINISHED),
        ):  # fmt: skip
            column.extend(array(column.typecode, [value]) * _GROW)

    def close(self) -> Requests:
        """Cut off what was not used, and return the columns."""
        columns = self.columns
        for name in Requests.__dataclass_fields__:
            del getattr(columns, name)[self.count :]
        self._room = self.count
        return columns


def new_series(interval_us: int, clients: int, workers: int) -> Series:
    """Return empty series."""
    return Series(
        interval_us,
        [array("d") for _ in range(clients)],
        [array("d") for _ in range(clients)],
        [array("i") for _ in range(clients)],
        [array("i") for _ in range(workers)],
        [array("i") for _ in range(workers)],
        [array("d") for _ in range(workers)],
        [array("q") for _ in range(workers)],
    )
