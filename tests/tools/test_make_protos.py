"""The generated modules are those of protos/."""

import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed (the `test` extra)")

from tools.make_protos import TARGET, generate


def test_generating_again_gives_the_committed_files():
    made = generate()
    assert made and made == {name: (TARGET / name).read_text(encoding="utf-8") for name in made}
    assert {file.name for file in TARGET.glob("*_pb2*")} == set(made)
