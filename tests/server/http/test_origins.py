"""Web pages may ask only where the server's owner says so."""

import json
import urllib.error
import urllib.request

import pytest

from medha_jax.server.settings import ServerSettings
from tests.server.embedded import running

PAGE, OTHER = "https://chat.example.org", "https://evil.example.org"


@pytest.fixture(scope="module")
def url():
    """A server that lets one page ask."""
    settings = ServerSettings(port=0, http_port=0, http_origins=f"{PAGE}, https://b.example.org", access_log="off")
    with running(settings) as (lines, _):
        yield next(line for line in lines if line.startswith("OpenAI API")).split()[-1]


def asked(url, method="GET", origin=None, **headers):
    """Status, headers and body of an answer."""
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode() if method == "POST" else None
    sent = headers if origin is None else headers | {"Origin": origin}
    request = urllib.request.Request(url, body, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_programs_and_the_allowed_page_are_answered(url):
    for origin in (None, PAGE):
        status, headers, body = asked(f"{url}/completions", "POST", origin)
        assert status == 200 and json.loads(body)["choices"]
        assert headers["Access-Control-Allow-Origin"] == origin
    assert headers["Vary"] == "Origin" and "x-request-id" in headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("method, path", [("POST", "completions"), ("GET", "models"), ("OPTIONS", "completions")])
@pytest.mark.parametrize("origin", [OTHER, "null", PAGE + ":8443", PAGE.upper()])
def test_other_pages_are_refused(url, method, path, origin):
    status, headers, body = asked(f"{url}/{path}", method, origin)
    assert status == 403 and headers["Access-Control-Allow-Origin"] is None
    error = json.loads(body)["error"]
    assert error["type"] == "permission_error" and "--http-origins" in error["message"]


def test_a_browser_that_asks_first_is_told(url):
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    status, headers, body = asked(f"{url}/completions", "OPTIONS", PAGE, **wanted)
    assert (status, body) == (204, b"") and headers["Access-Control-Allow-Origin"] == PAGE
    assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "POST" in headers["Access-Control-Allow-Methods"]


def test_errors_can_be_read_by_the_page(url):
    status, headers, _ = asked(f"{url}/nothing", "GET", PAGE)
    assert status == 404 and headers["Access-Control-Allow-Origin"] == PAGE


def test_by_default_no_page_may_ask():
    with running(ServerSettings(port=0, http_port=0, access_log="off")) as (lines, _):
        where = next(line for line in lines if line.startswith("OpenAI API")).split()[-1]
        assert asked(f"{where}/completions", "POST", PAGE)[0] == 403
        assert asked(f"{where}/completions", "POST")[0] == 200
