"""What comes from outside: figures of an engine that cannot be true, and names that callers make up."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.model import ClientId
from fairlead.core.ordering.deficits import FIRST_QUANTUM
from fairlead.core.outside import MOST_TOKENS
from fairlead.plugins.book import ADMITTED, PREEMPTED, WAITING, Book, Entry
from fairlead.plugins.figures import Figures, FiguresFile
from fairlead.plugins.settings import DIGEST_BYTES, NAME_LENGTH, PluginSettings, client_of, plugin_ordering

QUANTUM = 1000
ORDERS = (f"dlpm:quantum={QUANTUM}", f"dlpm:quantum={QUANTUM},light=off", "vtc", "lpm", "fcfs")
NONSENSE = st.one_of(
    st.integers(-(10**30), 10**30),
    st.sampled_from([10**5000, -(10**5000), 2**63, -1, MOST_TOKENS + 1, MOST_TOKENS]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.just([]),
)
KINDS = ("arrive", "admit", "decode", "preempt", "end")
STEPS = st.lists(st.tuples(st.sampled_from(["good", "bad"]), st.sampled_from(KINDS), NONSENSE, NONSENSE))


def book_of(order: str) -> Book:
    return Book(plugin_ordering(PluginSettings(order=order)), lambda keys: 0, Figures())


class Engine:
    """Calls the book's hooks as an engine does; for client ``bad`` with whatever numbers it is given."""

    def __init__(self, order: str) -> None:
        self.book = book_of(order)
        self._sent = 0

    def _one(self, client: ClientId, *states: int) -> Entry | None:
        entries = self.book.entries.values()
        return next((e for e in entries if e.client == client and e.state in states), None)

    def step(self, client: ClientId, kind: str, first: Any, second: Any) -> None:
        book = self.book
        if kind == "arrive":
            self._sent += 1
            book.arrived(f"{client} {self._sent}", client, first, now_us=second)
        elif kind == "admit":
            if (entry := self._one(client, WAITING, PREEMPTED)) is not None:
                if entry.queued:
                    book.take(entry)
                book.admitted(entry, first, second)
        elif kind == "decode":
            book.decoded({client: first})
        elif kind == "preempt":
            if (entry := self._one(client, ADMITTED)) is not None:
                book.preempted(entry, first)
        elif (entry := self._one(client, WAITING, ADMITTED, PREEMPTED)) is not None:
            book.ended(next(name for name, one in book.entries.items() if one is entry), first)
        book.head()
        book.ordering.check()


def drive(order: str, steps: list[tuple[str, str, Any, Any]], *, wild: bool) -> Engine:
    """Run the steps; client ``good`` always has numbers that can be true, ``bad`` only if not ``wild``."""
    engine = Engine(order)
    for client, kind, first, second in steps:
        sane = (7, 3) if kind == "decode" else (300, 100)
        engine.step(client, kind, *((first, second) if wild and client == "bad" else sane))
    return engine


@pytest.mark.parametrize("order", ORDERS)
@given(steps=STEPS)
def test_figures_that_cannot_be_true_change_nobody_elses_charge(
    order: str, steps: list[tuple[str, str, Any, Any]]
) -> None:
    tame, wild = (drive(order, steps, wild=wild).book for wild in (False, True))
    assert wild.figures.of("good").as_dict() == tame.figures.of("good").as_dict()
    assert tame.figures.ignored == 0
    if "light=off" in order:  # refills are whole quanta; what a client has used is the rest
        assert wild.ordering.credit(0, "good") % QUANTUM == tame.ordering.credit(0, "good") % QUANTUM


@pytest.mark.parametrize("order", ORDERS)
@given(steps=STEPS)
def test_no_figure_of_an_engine_turns_into_credit(order: str, steps: list[tuple[str, str, Any, Any]]) -> None:
    book = drive(order, steps, wild=True).book
    figures = book.figures.of("bad")
    assert all(value >= 0 for value in figures.as_dict().values())
    assert figures.cached_tokens <= figures.prompt_tokens
    for entry in book.entries.values():
        assert 0 <= entry.charged <= 3 * MOST_TOKENS * (1 + len(steps))
    if order == "vtc":
        assert book.ordering.credit(0, "bad") <= 0


@pytest.mark.parametrize("cached", [-1, 301, 10**400, 1.5, float("nan"), None, True])
def test_more_cached_than_there_is_counts_as_what_the_book_knew(
    cached: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt of 300 tokens, of which the plugin itself found 128 in the cache."""
    book = Book(plugin_ordering(PluginSettings()), lambda keys: 4, Figures())
    for name in ("first", "second"):
        entry = book.arrived(name, "alice", 300, range(9), 32)
        book.take(entry)
        with caplog.at_level(logging.WARNING):
            book.admitted(entry, 300, cached)
    assert book.figures.of("alice").cached_tokens == 2 * 128
    assert book.figures.of("alice").extend_tokens == 2 * 172
    assert book.figures.ignored == 2
    assert caplog.text.count("cached tokens of an admitted request") == 1, "told of once"


def test_who_ends_early_never_gets_back_more_than_was_charged() -> None:
    book = book_of("dlpm")
    entry = book.arrived("r", "alice", 300)
    book.take(entry)
    book.admitted(entry, 300, 100)
    book.ended("r", 0)
    assert book.ordering.credit(0, "alice") == FIRST_QUANTUM
    assert book.figures.of("alice").extend_tokens == 0


def test_calls_that_do_not_fit_the_state_are_counted_and_left_out() -> None:
    book = book_of("dlpm")
    entry = book.arrived("r", "alice", 300)
    book.preempted(entry, 10)
    assert entry.state == WAITING
    assert book.figures.ignored == 1
    book.admitted(entry, 300, 0)  # nobody took it out of the queue
    assert len(book) == 0
    assert book.head() is None
    book.ordering.check()


def told(text: str) -> Any:
    """Read JSON as strict readers do: no NaN, no half of a surrogate pair."""
    return msgspec.json.decode(text.encode("ascii"))


@given(st.lists(st.one_of(st.text(), st.text(alphabet='\ud800\n\0"\\é�', max_size=400), st.integers())))
def test_the_file_is_valid_and_bounded_whatever_the_names(names: list[Any]) -> None:
    settings = PluginSettings(metrics_clients=5, weights={"w": 1e6})
    figures = Figures()
    for name in names:
        figures.of(client_of(settings, name)).output_tokens += 1
    text = json.dumps(figures.snapshot(plugin_ordering(settings), settings), indent=1)
    found = told(text)
    assert len(found["clients"]) <= 5
    rows = [*found["clients"].values(), found["others"]]
    assert sum(row["output_tokens"] for row in rows) == len(names)
    longest = 12 * (NAME_LENGTH + 1 + 2 * DIGEST_BYTES)  # a character outside the basic plane, escaped
    assert len(text) < 6 * (longest + 600)


def test_a_megabyte_of_name_is_a_short_row_in_the_file(tmp_path: Path) -> None:
    settings = PluginSettings(metrics_file=str(tmp_path / "f.json"))
    figures, ordering = Figures(), plugin_ordering(settings)
    for last in "ab":
        figures.of(client_of(settings, "\n" * 1_000_000 + last)).running = 1
    FiguresFile(settings.metrics_file, figures, ordering, settings).close()
    text = (tmp_path / "f.json").read_text()
    assert len(told(text)["clients"]) == 2
    assert len(text) < 4000


def test_many_names_are_forgotten_a_block_at_a_time() -> None:
    """A look at all clients for each new name would let names alone slow an engine down."""
    figures = Figures(limit=100)
    looks = 0
    forget = figures._forget

    def counted() -> None:
        nonlocal looks
        looks += 1
        forget()

    figures._forget = counted  # type: ignore[method-assign]
    for number in range(2_000):
        figures.of(f"busy {number}").running = 1
    assert looks < 12
    assert len(figures.clients) == 2_000, "whoever has a request is kept"
    for client in figures.clients.values():
        client.running = 0
    for number in range(5_000):
        figures.of(f"idle {number}")
    assert len(figures.clients) <= 3_000
