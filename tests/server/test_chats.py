"""Conversations over the wire, with a real server and a real model."""

from __future__ import annotations

import asyncio

import pytest

from medha_jax.client import AsyncClient, Chat, Client, Delta, Finished, ServerError
from tests.server.processes import ServerProcess, wait_until

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "un été </s> 😀"}]
TOOL = {"type": "function", "function": {"name": "f"}}
PROMPT = "<s>[system] be brief</s>[user] un été </s> 😀</s>f[assistant]"


def test_a_chat_is_answered_as_its_text(client: Client) -> None:
    ids = client.tokenize(PROMPT, add_special_tokens=False)
    assert client.tokenize(Chat(MESSAGES, [TOOL])) == ids
    as_text = [*client.generate(PROMPT, add_special_tokens=False, max_tokens=8)]
    as_chat = [*client.generate(messages=MESSAGES, tools=[TOOL], max_tokens=8)]
    finished = as_chat[-1]
    assert isinstance(finished, Finished) and finished.usage.prompt_tokens == len(ids)
    assert [text_of(as_chat), ids_of(as_chat)] == [text_of(as_text), ids_of(as_text)]


def test_the_echo_is_what_the_template_made(client: Client) -> None:
    events = [*client.generate(Chat(MESSAGES, [TOOL]), max_tokens=2, echo=True)]
    assert text_of(events).startswith(PROMPT)


def test_asyncio_has_it_too(server: ServerProcess) -> None:
    async def asked() -> tuple[int, ...]:
        async with AsyncClient(server.address) as client:
            events = [event async for event in client.generate(messages=MESSAGES, tools=[TOOL], max_tokens=4)]
            assert await client.tokenize(Chat(MESSAGES)) != ()
            return ids_of(events)

    with Client(server.address) as client:
        assert asyncio.run(asked()) == ids_of([*client.generate(Chat(MESSAGES, [TOOL]), max_tokens=4)])


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (Chat([]), "there are 0 messages; allowed are 1 to 8192"),
        (Chat([{"role": "tool", "content": "x"}]), "the chat template refuses the messages: no tools here"),
        (Chat(MESSAGES, variables={"messages": []}), "a template's variable is named 'messages'"),
    ],
)
def test_what_makes_no_prompt_is_refused(client: Client, chat: Chat, said: str) -> None:
    with pytest.raises(ServerError) as refused:
        [*client.generate(chat)]
    assert refused.value.code == "INVALID_ARGUMENT" and said in refused.value.message


def test_the_access_log_has_nothing_of_a_chat(client: Client, server: ServerProcess) -> None:
    secret = "a confidential role"
    with pytest.raises(ServerError, match=secret):
        [*client.generate(messages=[{"role": secret, "content": secret}])]
    wait_until(lambda: "the chat makes no prompt; the client was told why" in server.errors)
    assert secret not in server.errors


def test_a_chat_longer_than_the_context_is_refused(client: Client) -> None:
    with pytest.raises(ServerError) as refused:
        [*client.generate(messages=[{"role": "user", "content": "word " * 900}])]
    assert refused.value.code == "OUT_OF_RANGE"


def text_of(events: list) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def ids_of(events: list) -> tuple[int, ...]:
    return sum((event.token_ids for event in events if isinstance(event, Delta)), ())
