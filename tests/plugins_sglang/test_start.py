"""What is checked before the first request, so that nothing that is wrong goes unnoticed."""

import os
from typing import Any

import pytest
from sglang.srt.managers.schedule_policy import PrefillAdder, SchedulePolicy
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from fairlead.plugins import sglang as plugin
from tests.plugins_sglang.bare_sglang import Bare
from tests.plugins_sglang.conftest import Settings

ADD = "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's registry as if nothing had been hooked yet, but for what is in place already."""
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    return HookRegistry


def test_the_version_is_the_one_that_is_meant() -> None:
    assert plugin.version_of("sglang") == os.environ["EXPECTED_SGLANG"]
    assert plugin.version_of("sglang") in plugin.TESTED


def test_sglang_has_loaded_it_and_every_hook_is_in_place() -> None:
    assert {hook.target for hook in plugin.HOOKS} <= HookRegistry._patched
    plugin.check_hooks(Bare().scheduler)


def test_it_leaves_sglang_alone_unless_asked_by_name(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in ("", "other", "not-fairlead"):
        monkeypatch.setenv("SGLANG_PLUGINS", choice)
        plugin.register()
        assert not registry._hooks
    monkeypatch.setenv("SGLANG_PLUGINS", "other, fairlead")
    plugin.register()
    assert len(registry._hooks) == len(plugin.HOOKS)


def test_a_hook_that_is_not_in_place_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in (
        (PrefillAdder, "add_one_req"),
        (SchedulePolicy, "calc_priority"),
        (Scheduler, "process_batch_result"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, getattr(owner, name).__wrapped__)
            with pytest.raises(plugin.UnsupportedError, match=rf"not in place on \S+\.{name}; the log above"):
                Bare()


def test_a_hook_below_another_plugins_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.plugins.hook_registry import _wrap_fn

    others = _wrap_fn(PrefillAdder.add_one_req, lambda result, *_, **__: result, HookType.AFTER)
    monkeypatch.setattr(PrefillAdder, "add_one_req", others)
    plugin.check_hooks(Bare().scheduler)


def test_an_adder_of_its_own_that_is_not_hooked_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(PrefillAdder):
        def add_one_req(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    monkeypatch.setattr(Scheduler, "get_prefill_adder_class", lambda _: Own)
    with pytest.raises(plugin.UnsupportedError, match=r"not in place on .*add_one_req"):
        Bare()


def test_without_its_books_the_event_loop_does_not_start() -> None:
    """The hook that opens them was not applied, so that nothing else could be checked."""
    with pytest.raises(plugin.UnsupportedError, match=r"not in place on .*init_schedule_policy"):
        Scheduler.__new__(Scheduler).run_event_loop()


def test_a_hook_that_sglang_cannot_apply_is_only_logged_by_it(
    registry: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the checks are for: SGLang goes on."""
    plugin.register()
    with monkeypatch.context() as patch:
        patch.delattr(PrefillAdder, "add_one_req")
        for hook in plugin.HOOKS:  # the others are in place from before
            if hook.target != ADD:
                del registry._hooks[hook.target]
        registry.apply_hooks()
    assert f"Failed to apply hooks to {ADD}" in caplog.text


def test_an_sglang_that_lacks_something_ends_the_process_with_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plugin.missing() == []
    monkeypatch.delattr(PrefillAdder, "add_one_req")
    monkeypatch.setattr(Scheduler, "process_batch_result", lambda self, results: None)
    monkeypatch.setattr(SchedulePolicy, "__init__", lambda self: None)
    monkeypatch.setattr(plugin, "_NAMES", ("sglang.srt.nowhere.thing",))
    with pytest.raises(SystemExit) as caught:
        plugin.register()
    for name in (
        "fairlead: the plugin does not fit SGLang 0.5.23",
        "PrefillAdder.add_one_req(req",
        "Scheduler.process_batch_result(batch, result)",
        "SchedulePolicy.__init__: waiting_queue_radix_tree",
        "sglang.srt.nowhere.thing",
        "Tested versions: 0.5.23",
    ):
        assert name in str(caught.value)


def test_another_version_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "version_of", lambda _: "0.6.0")
    plugin.check_version()
    assert "SGLang 0.6.0 was not tested, only 0.5.23" in caplog.text


def test_settings_that_are_wrong_end_the_process(settings: Settings) -> None:
    settings(order="dlmp")
    with pytest.raises(SystemExit, match="did you mean 'dlpm'"):
        plugin.register()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule_policy": "fcfs"}, r"--schedule-policy fcfs: set it to lpm"),
        ({"enable_priority_scheduling": True}, r"--enable-priority-scheduling is an order of its own"),
        ({"enable_hierarchical_cache": True}, r"--enable-hierarchical-cache\): not supported"),
        ({"enable_lmcache": True}, r"LMCache .*not supported"),
        ({"dllm_config": object()}, r"diffusion models: not supported"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(plugin.UnsupportedError, match=message):
        Bare(**options)
