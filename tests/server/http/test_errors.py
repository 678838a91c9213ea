import json

from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from medha_jax.server.http.errors import FieldRefusal, TooLargeRefusal, answer_of, body_of, encoded, status_of
from medha_jax.server.refusal import Refusal, too_busy, too_slow, unavailable
from tests.server.http.any_json import TEXTS, VALUES


@given(st.sampled_from(StatusCode), TEXTS, st.none() | st.floats(0, 1e6))
def test_every_refusal_is_an_answer_in_openais_form(code, message, retry_s):
    refusal = Refusal(code, message, retry_s)
    answer = answer_of(refusal)
    assert 400 <= answer.status < 600 and answer.status == status_of(refusal)
    assert answer.content_type == "application/json"
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] == message
    retried = answer.status == 503 or retry_s is not None
    assert answer.headers["x-should-retry"] == ("true" if retried else "false")
    assert ("Retry-After" in answer.headers) == ("retry-after-ms" in answer.headers) == retried
    if retried and retry_s is not None:
        assert int(answer.headers["Retry-After"]) >= max(1, retry_s)
        assert 0 <= int(answer.headers["retry-after-ms"]) - 1000 * retry_s <= 1


def test_statuses():
    def told(refusal):
        error = body_of(refusal)["error"]
        return status_of(refusal), error["type"], error["param"], error["code"]

    assert told(FieldRefusal("n", "no")) == (400, "invalid_request_error", "n", None)
    missing = FieldRefusal("model", "no", StatusCode.NOT_FOUND)
    assert told(missing) == (404, "not_found_error", "model", "model_not_found")
    assert told(TooLargeRefusal(5)) == (413, "invalid_request_error", None, "context_length_exceeded")
    assert told(too_busy("no")) == (429, "rate_limit_error", None, None)
    assert told(too_slow("no"))[:2] == (429, "rate_limit_error")
    assert answer_of(too_slow("no")).headers["x-should-retry"] == "false"
    assert told(unavailable("no")) == (503, "service_unavailable_error", None, None)
    assert told(Refusal(StatusCode.INTERNAL, "no"))[:2] == (500, "internal_error")
    assert told(Refusal(StatusCode.UNAUTHENTICATED, "no")) == (401, "authentication_error", None, "invalid_api_key")
    assert answer_of(Refusal(StatusCode.UNAUTHENTICATED, "no")).headers["WWW-Authenticate"] == "Bearer"
    assert told(Refusal(StatusCode.ALREADY_EXISTS, "no"))[:2] == (409, "conflict_error")
    assert told(Refusal(StatusCode.DEADLINE_EXCEEDED, "no"))[:2] == (504, "timeout_error")


def test_a_client_waits_for_what_the_refusal_says():
    assert answer_of(too_busy("no", 2.25)).headers["retry-after-ms"] == "2250"
    assert answer_of(too_busy("no", 2.25)).headers["Retry-After"] == "3"
    assert answer_of(too_busy("no", 0.01)).headers["Retry-After"] == "1"
    assert answer_of(unavailable("no")).headers["Retry-After"] == "1"


@given(VALUES.filter(lambda value: "Infinity" not in json.dumps(value)))
def test_json_is_one_line(value):
    data = encoded(value)
    assert json.loads(data) == value and b"\n" not in data and data.isascii()
