"""A pool that is smaller than the context, and requests that do not say how long their answers may be."""

import threading

import pytest

from medha_jax.client import Client, Delta, Finished
from tests.server.processes import ServerProcess, idle, refusal, wait_until

POOL = 256  # tokens; the context is 512


@pytest.fixture(scope="module")
def client(serve_options):
    options, environment = serve_options
    with ServerProcess(*options, "--pool-tokens", POOL, environment=environment) as server:
        with Client(server.address) as connected:
            yield connected
        assert server.stop() == 0, server.errors


def test_an_answer_without_a_limit_ends_where_the_pool_does(client):
    *_, last = client.generate([5, 6, 7], ignore_eos=True)
    assert isinstance(last, Finished) and last.reason == "length"
    assert last.usage.prompt_tokens + last.usage.output_tokens in (POOL, POOL + 1)  # the last token needs no page


def test_what_never_fits_the_pool_is_refused_with_what_does(client):
    error = refusal(client.generate([5] * 300, max_tokens=1))
    assert error.code == "OUT_OF_RANGE" and str(POOL - 1) in error.message, error


def test_requests_without_a_limit_run_beside_each_other(client):
    """Each could need the whole pool; all begin at once, and nobody waits for another one's last token."""
    begun, ended = [], []

    def read(number):
        for event in client.generate([5, 6, number], ignore_eos=True):
            if isinstance(event, Delta) and number not in begun:
                begun.append(number)
        ended.append((number, len(begun)))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ended) == 6
    assert ended[0][1] == 6, "the first answer ended before the others had begun"
    wait_until(lambda: idle(client))
