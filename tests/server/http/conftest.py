import openai
import pytest

KEY = "none is needed"


@pytest.fixture(scope="session")
def asked(server):
    """The package of OpenAI, as it is, for the real server. A wrong answer is not asked for again."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def asked_simulated(simulated):
    with openai.OpenAI(base_url=f"{simulated.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client
