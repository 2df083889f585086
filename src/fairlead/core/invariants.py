"""What is always true of a dispatcher between two events; the tests ask after each one.

The numbers are those of docs/architecture.md. It costs time in proportion to all state.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fairlead.core.lifecycle import State
from fairlead.core.tracked import TrackedRequest
from fairlead.core.worker import Worker

if TYPE_CHECKING:
    from fairlead.core.dispatcher import Dispatcher


def check(dispatcher: "Dispatcher") -> None:
    """Raise AssertionError if an invariant is broken."""
    _check_conservation(dispatcher)
    _check_ledger(dispatcher)
    dispatcher.ordering.check()
    dispatcher.outputs.check()
    dispatcher.index.check()
    of_slot: dict[int, list[TrackedRequest]] = {slot: [] for slot in dispatcher.fleet.slots.values()}
    for tracked in dispatcher.requests.values():
        if tracked.slot >= 0:
            of_slot[tracked.slot].append(tracked)
    for slot, requests in of_slot.items():
        _check_worker(dispatcher, dispatcher.workers[slot], requests)


def _check_conservation(dispatcher: "Dispatcher") -> None:
    """Invariants 1 and 10: each request that arrived is in exactly one place."""
    fleet, requests = dispatcher.fleet, dispatcher.requests
    waits = [r for r in requests.values() if r.state is State.QUEUED]
    runs = [r for r in requests.values() if r.state is not State.QUEUED]
    parked = dispatcher.placement.parked.values()
    assert dispatcher.arrived == len(requests) + sum(dispatcher.ended.values()), "a request was lost"
    assert len(waits) == dispatcher.shares.total, "queue counts differ"
    assert _sequences(waits) == _sequences(parked) + sum(fleet.queued), "sequences that wait differ"
    assert _sequences(runs) == sum(fleet.running), "sequences that run differ"
    assert fleet.waiting == sum(fleet.queued), "counts of who waits differ"
    held = fleet.held.intersection(fleet.candidates)
    assert not held or held == set(fleet.candidates), "a worker without room is a candidate beside others"


def _sequences(requests: Iterable[TrackedRequest]) -> int:
    return sum(r.sequences for r in requests)


def _check_ledger(dispatcher: "Dispatcher") -> None:
    """Invariant 2: the ledger balances, and reserves for what runs."""
    ledger = dispatcher.ledger
    ledger.check()
    outstanding = dict.fromkeys(ledger.accounts, 0)
    for tracked in dispatcher.requests.values():
        if tracked.state is not State.QUEUED:
            outstanding[tracked.client] += tracked.extend * ledger.costs.extend
    for client, account in ledger.accounts.items():
        assert account.outstanding == outstanding[client], f"outstanding work of {client} differs"


def _check_worker(dispatcher: "Dispatcher", worker: Worker, requests: list[TrackedRequest]) -> None:
    """The books of one worker are those of its requests; invariant 3: it does not idle."""
    fleet, slot, queue = dispatcher.fleet, worker.slot, worker.queue
    assert (slot in fleet.held) is (worker.held_until > 0), f"{fleet.ids[slot]}: whether it is held differs"
    name = fleet.ids[slot]
    sent = [r for r in requests if r.state is not State.QUEUED]
    assert len(queue) == len(requests) - len(sent), f"{name}: queue length differs"
    assert fleet.running[slot] == _sequences(sent), f"{name}: sequences that run differ"
    assert fleet.batch_size[slot] == fleet.queued[slot] + fleet.running[slot] == _sequences(requests), (
        f"{name}: batch size differs"
    )
    pending, under_way = (sum(r.pending_prefill_tokens for r in some) for some in (requests, sent))
    assert fleet.pending_prefill_tokens[slot] == pending, f"{name}: pending prefill differs"
    assert fleet.waiting_tokens(slot) == pending - under_way, f"{name}: tokens that wait differ"
    assert worker.prefilling.tokens == under_way, f"{name}: prefill under way differs"
    assert worker.kv_extra == sum(r.kv_extra for r in requests), f"{name}: KV books differ"
    prompts = sum(r.request.prompt_tokens for r in sent)
    assert fleet.context[slot] == prompts, f"{name}: context differs"
    for item in queue if dispatcher.ordering.uses_match else ():
        assert item.matched == dispatcher.index.ready(slot, item.keys), f"{name}: stale match of {item!r}"
    if fleet.up[slot] and queue and not worker.full:
        head = worker.head or queue.head(worker.fits)
        assert head is None or not worker.fits(head), f"{name} idles while {head!r} fits"
