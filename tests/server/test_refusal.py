from grpc import StatusCode
from hypothesis import example, given
from hypothesis import strategies as st

from medha_jax.server.refusal import Refusal, retry_seconds

SECONDS = st.floats(0, 1e9)  # in nanoseconds a float is exact up to 2^53 of them, which is 104 days


@given(st.sampled_from(StatusCode), st.text(max_size=20), st.none() | SECONDS)
@example(StatusCode.RESOURCE_EXHAUSTED, "busy", 0.0)
@example(StatusCode.RESOURCE_EXHAUSTED, "busy", 1e-9)
@example(StatusCode.UNAVAILABLE, "", 1.5)
def test_what_a_refusal_says_of_a_retry_comes_back(code, message, retry_s):
    found = retry_seconds(Refusal(code, message, retry_s).trailers())
    if retry_s is None:
        assert found is None
    else:
        assert found is not None and abs(found - retry_s) <= 1e-9 + 1e-15 * retry_s
    assert retry_seconds(()) is None
