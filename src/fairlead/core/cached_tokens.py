"""How many prompt tokens cached blocks stand for. Apart, since it is asked several times a request."""


def cached_prompt_tokens(prompt_tokens: int, block_tokens: float, blocks: int) -> int:
    """Return the tokens of a prompt that are cached with its first ``blocks`` blocks: at most all but one.

    An engine computes at least the last prompt token, whatever it caches, since its logits give the
    first output token.
    """
    tokens = int(blocks * block_tokens)
    return max(0, min(prompt_tokens - 1, tokens))
