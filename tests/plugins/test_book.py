"""What happens in an engine, told to a policy: no engine, no cache but a set of keys."""

from collections.abc import Sequence

import pytest

from fairlead.core.model import Costs
from fairlead.plugins.book import Book
from fairlead.plugins.figures import ClientFigures, Figures
from fairlead.plugins.settings import PluginSettings, plugin_ordering

COSTS = Costs()
QUANTUM = 1000


class Cache:
    """Blocks by key, which say of themselves how many there are in front."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()

    def matched(self, keys: Sequence[int]) -> int:
        return next((n for n, key in enumerate(keys) if key not in self.blocks), len(keys))


def book_of(order: str = f"dlpm:quantum={QUANTUM}") -> tuple[Book, Cache]:
    cache = Cache()
    settings = PluginSettings(order=order, weights={"heavy": 2.0})
    return Book(plugin_ordering(settings), cache.matched, Figures()), cache


def admit(book: Book, name: str, cached: int = 0) -> None:
    entry = book.entries[name]
    book.take(entry)
    book.admitted(entry, entry.item.request.prompt_tokens, cached)


def credit(book: Book, client: str) -> float:
    """Return the client's credit; whole refills are left out."""
    return book.ordering.credit(0, client) % QUANTUM


def counts(book: Book, client: str) -> tuple[int, int, int, int]:
    figures = book.figures.of(client)
    return figures.waiting, figures.running, figures.preempted, figures.ended


def test_the_head_is_matched_again_before_it_goes() -> None:
    book, cache = book_of("lpm")
    cache.blocks = {1, 2, 3}
    book.arrived("late", "a", 40, (9,), 10)
    book.arrived("long", "a", 40, (1, 2, 3), 10)
    book.arrived("short", "a", 40, (1, 5), 10)
    assert book.head() is book.entries["long"].item
    cache.blocks = {1}  # nobody was told
    assert book.head() is book.entries["long"].item
    cache.blocks = {1, 5}
    book.stored((5,))
    assert book.head() is book.entries["short"].item
    cache.blocks = set()
    assert book.head() is book.entries["late"].item, "no match: order of arrival"
    book.ordering.check()


def test_charged_at_admission_and_token_by_token() -> None:
    book, _ = book_of()
    book.arrived("r", "alice", 300)
    assert counts(book, "alice") == (1, 0, 0, 0)
    assert book.head() is book.entries["r"].item
    assert book.ordering.credit(0, "alice") == QUANTUM, "refilled, and not charged by being looked at"
    admit(book, "r", cached=100)
    assert book.ordering.credit(0, "alice") == QUANTUM - 200
    assert counts(book, "alice") == (0, 1, 0, 0)
    book.decoded({"alice": 7})
    assert book.ordering.credit(0, "alice") == QUANTUM - 200 - 7 * COSTS.output
    book.ended("r")
    assert counts(book, "alice") == (0, 0, 0, 1)
    assert book.ordering.credit(0, "alice") == QUANTUM - 200 - 7 * COSTS.output


def test_who_is_put_back_is_where_it_was() -> None:
    book, _ = book_of()
    for name in ("first", "second"):
        book.arrived(name, "alice", 10)
    head = book.head()
    assert head is book.entries["first"].item
    book.take(book.entries["first"])
    assert book.head() is book.entries["second"].item
    book.put_back(book.entries["first"])
    assert book.head() is head
    assert len(book) == 2


@pytest.mark.parametrize(
    ("computed", "cached_again", "again"),
    [(300, 0, 300), (300, 250, 50), (120, 100, 20), (120, 160, -40), (350, 300, 50)],
)
def test_a_preempted_request_pays_for_what_is_computed_twice(
    computed: int, cached_again: int, again: int
) -> None:
    """Of 300 prompt tokens 100 were cached; by others' work more can be cached when it is resumed."""
    book, _ = book_of()
    book.arrived("r", "alice", 300)
    admit(book, "r", cached=100)
    before = credit(book, "alice")
    entry = book.entries["r"]
    book.preempted(entry, computed)
    assert credit(book, "alice") == before
    assert counts(book, "alice") == (0, 0, 1, 0)
    book.admitted(entry, max(300, computed + 1), cached_again)
    assert (before - credit(book, "alice")) % QUANTUM == again % QUANTUM
    assert book.figures.of("alice").extend_tokens == 200 + again
    assert counts(book, "alice") == (0, 1, 0, 0)


@pytest.mark.parametrize(("computed", "paid"), [(100, 0), (150, 50), (300, 200), (310, 200)])
def test_who_ends_early_pays_for_what_was_computed(computed: int, paid: int) -> None:
    book, _ = book_of()
    book.arrived("r", "alice", 300)
    admit(book, "r", cached=100)
    book.ended("r", computed)
    assert book.ordering.credit(0, "alice") == QUANTUM - paid
    assert book.figures.of("alice").extend_tokens == paid


def test_who_ends_while_it_waits_pays_nothing() -> None:
    book, _ = book_of()
    book.arrived("never ran", "alice", 300)
    book.ended("never ran")
    assert book.ordering.credit(0, "alice") == QUANTUM
    assert counts(book, "alice") == (0, 0, 0, 1)
    assert len(book) == 0
    book.arrived("ran", "alice", 300)
    admit(book, "ran")
    book.preempted(book.entries["ran"], 80)
    book.ended("ran", 0)
    assert book.ordering.credit(0, "alice") == QUANTUM - 80
    assert counts(book, "alice") == (0, 0, 0, 2)
    book.ended("ran")
    assert not book.entries


def test_names_are_unique() -> None:
    book, _ = book_of()
    book.arrived("r", "alice", 10)
    with pytest.raises(KeyError, match="'r' is in the engine already"):
        book.arrived("r", "bob", 10)


def test_the_figures_of_idle_clients_are_added_up() -> None:
    figures = Figures(limit=4)
    for number in range(4):
        figures.of(f"c{number}").output_tokens = 10
    figures.of("c0").running = 1
    figures.of("new").output_tokens = 1
    assert set(figures.clients) == {"c0", "c3", "new"}, "half of the limit went, the busy one stays"
    assert figures.others.output_tokens == 20
    assert isinstance(figures.of("c1"), ClientFigures)


def test_the_most_served_are_told_of_one_by_one() -> None:
    settings = PluginSettings(metrics_clients=2, weights={"b": 3.0})
    figures = Figures()
    for client, tokens in (("a", 5), ("b", 50), ("c", 500)):
        figures.of(client).extend_tokens = tokens
        figures.of(client).output_tokens = 1
    told = figures.snapshot(plugin_ordering(settings), settings)
    clients = told["clients"]
    assert isinstance(clients, dict)
    assert list(clients) == ["c", "b"]
    assert clients["c"]["service"] == 500 + COSTS.output
    assert (clients["b"]["weight"], clients["c"]["weight"]) == (3.0, 1.0)
    assert isinstance(told["others"], dict)
    assert told["others"]["extend_tokens"] == 5
