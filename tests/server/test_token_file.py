"""The file of tokens: every line is taken or refused with its number, and nothing shows a token."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medha_jax.config import ConfigError
from medha_jax.server.token_file import LONGEST_NAME, SHORTEST_TOKEN, Tokens, read_tokens

LETTERS = "abcXYZ019"
names = st.one_of(
    st.just(""),
    st.sampled_from(["a", "b", "a-1"]),
    st.from_regex(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}", fullmatch=True),
)
tokens = st.text([chr(code) for code in range(33, 127)], min_size=SHORTEST_TOKEN, max_size=40)
spaces = st.text(" \t", min_size=1, max_size=3)
ends = st.sampled_from(["\n", "\r\n", "\r"])


def read(tmp_path_factory, content: bytes) -> Tokens:
    path = tmp_path_factory.getbasetemp() / "tokens"
    path.write_bytes(content)
    return read_tokens(path)


@given(st.lists(st.tuples(names, tokens, spaces, ends), min_size=1, max_size=8, unique_by=lambda one: one[1]))
def test_good_lines_are_taken(tmp_path_factory, lines):
    written = "".join(f"{space}{name}{space}{token}{space}{end}{end}" for name, token, space, end in lines)
    found = read(tmp_path_factory, written.encode())
    for name, token, _, _ in lines:
        assert found.tenant_of(token.encode()) == name
        assert found.tenant_of(token[:-1].encode()) is None
        assert token not in repr(found)
    assert found.tenant_of(b"") is None
    stated = {name for name, *_ in lines}
    assert found.named_tenants == (set() if stated == {""} else stated)


@st.composite
def bad_lines(draw):
    """A line that must be refused; it has a secret in it."""
    token = draw(tokens)
    return draw(
        st.sampled_from(
            [
                "short",
                f"name {token[: SHORTEST_TOKEN - 1]}",
                f"{token} name",
                f"{token} {token}",
                f"a b {token}",
                f"# {token}",
                f"-a {token}",
                f"a,b {token}",
                f"name={token} {token}",
                f"\xe9 {token}",
                f"name {token}\xe9",
                f"{token}\0",
                f"name {token}\x7f",
                f"{'a' * (LONGEST_NAME + 1)} {token}",
                f"other {'0' * 20}",  # the token of the first line
                "0" * 20,
            ]
        )
    ), token


@given(bad_lines(), st.lists(st.sampled_from(["", "  ", f"x {'1' * 20}", "2" * 20]), max_size=4))
@example(("short", "-" * 20), [])
def test_a_bad_line_is_refused_with_its_number_and_is_not_shown(tmp_path_factory, bad, between):
    line, token = bad
    written = "\n".join([f"first {'0' * 20}", *between, line, f"last {'3' * 20}"])
    with pytest.raises(ConfigError) as raised:
        read(tmp_path_factory, written.encode())
    message = str(raised.value)
    where = tmp_path_factory.getbasetemp() / "tokens"
    assert message.startswith(f"{where}, line {2 + len(between)}: ")
    assert ("\n" not in message and "; " in message) or "is not" in message
    assert token not in message and "0" * 20 not in message


@given(st.binary(max_size=200))
def test_whatever_a_file_holds_is_taken_or_refused_in_one_line(tmp_path_factory, content):
    try:
        found = read(tmp_path_factory, content)
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        assert found.tenants
        assert all(len(token) >= SHORTEST_TOKEN and len(name) <= LONGEST_NAME for token, name in found.tenants.items())
    assert "\n" not in message


def test_two_tokens_of_one_name_are_one_tenant_and_a_token_may_stand_twice(tmp_path: Path):
    path = tmp_path / "tokens"
    path.write_text(f"a {'0' * 20}\nb {'1' * 20}\na {'2' * 20}\na {'0' * 20}\n{'3' * 20}\n")
    found = read_tokens(path)
    assert [found.tenant_of(digit * 20) for digit in (b"0", b"1", b"2", b"3", b"4")] == ["a", "b", "a", "", None]
    assert found.named_tenants == {"a", "b", ""}
