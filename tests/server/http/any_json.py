"""Any JSON value, as hypothesis draws it: with lone surrogates, huge and fractional numbers, and known names."""

from hypothesis import strategies as st

from medha_jax.server.refusal import Refusal

KNOWN = (
    *("model", "prompt", "stream", "stream_options", "return_token_ids", "temperature", "top_p", "min_p", "top_k"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "min_tokens", "max_tokens", "n", "echo"),
    *("max_completion_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "stop", "logprobs"),
    *("stop_token_ids", "allowed_token_ids", "logit_bias", "use_beam_search", "length_penalty", "best_of", "suffix"),
    *("spaces_between_special_tokens", "priority", "cache_salt", "request_id", "on_deadline", "user", "metadata"),
    *("service_tier", "safety_identifier", "prompt_cache_key", "store", "add_special_tokens"),
    *("include_usage", "continuous_usage_stats", "include_obfuscation"),
)
TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)  # surrogates, too
INTEGERS = st.integers() | st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**64, -(2**63), 10**400, -(10**400)])
LEAVES = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXTS
NAMES = st.sampled_from(KNOWN) | TEXTS | st.integers(-1, 2**33).map(str)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def outcome(read, *given):
    """What a function returns, and None; or None, and its refusal. Another error of it is the test's."""
    try:
        return read(*given), None
    except Refusal as refusal:
        return None, refusal
