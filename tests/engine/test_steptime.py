import pytest

from fairlead.engine.profiles import DEFAULT_PROFILE, PROFILES, profile_named
from fairlead.engine.steptime import StepTime, Work

ROUND = StepTime(
    weights_us=10_000,
    base_us=5_000,
    token_us=40,
    decode_context_ns=100,
    prefill_pair_ns=2,
    sequence_us=20,
    mixed_context_ns=50,
    head_us=700,
    cpu_us=1_000,
)


def test_decode_step_reads_the_weights_and_the_context() -> None:
    """10 sequences of 1,000 tokens: W 10,000 + 100 ns · 10,000 = 1,000 + 20 · 10 + 700 + 1,000."""
    assert ROUND.step_us(Work(decode_seqs=10, decode_context=10_000)) == 12_900


def test_prefill_step_computes_tokens_and_pairs() -> None:
    """A 1,000-token chunk after 2,000 tokens: 5,000 + 40,000 + 2 ns · 1,000·(2,000 + 500) + 1,700."""
    work = Work(prefill_tokens=1_000, prefill_area=1_000 * (2 * 2_000 + 1_000))
    assert ROUND.step_us(work) == 5_000 + 40_000 + 5_000 + 1_700


def test_mixed_step_pays_for_the_mix() -> None:
    """The step also prefills, so each context token costs 50 ns more: a + b·1,010 exceeds W + t_seq·10."""
    work = Work(10, 10_000, 1_000, 1_000 * 1_000)
    assert ROUND.step_us(work) == 5_000 + 40 * 1_010 + 1_500 + 1_000 + 1_700


def test_weights_hide_a_small_chunk() -> None:
    assert ROUND.step_us(Work(prefill_tokens=100)) == ROUND.step_us(Work(prefill_tokens=1)) == 11_700


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_profiles_are_sane(profile):
    """Each reads its weights in W, prefills slower than it could read them, and has room for a prompt."""
    steps = profile.steps
    assert profile.name == profile.name.lower()
    assert profile_named(profile.name) is profile
    assert 0 < steps.base_us < steps.weights_us
    assert steps.weights_us < steps.base_us + 2_048 * steps.token_us
    assert steps.mixed_context_ns > 0
    assert steps.decode_context_ns > 0
    assert profile.kv_tokens > 16 * profile.max_num_seqs
    assert profile.max_num_batched_tokens >= profile.max_num_seqs
    assert profile.provenance


def test_one_host_overhead_for_all_profiles() -> None:
    assert len({profile.steps.cpu_us for profile in PROFILES.values()}) == 1


def test_unknown_profile_lists_the_valid_ones() -> None:
    with pytest.raises(
        ValueError, match=rf"unknown profile 'llama-3.1-8b-h10'.*did you mean '{DEFAULT_PROFILE}'"
    ):
        profile_named("llama-3.1-8b-h10")
