"""Generate the protobuf modules in medha_jax/protos/ from protos/; needs grpcio-tools (the `test` extra).

Only messages are generated: generated service stubs have no types, and typed ones are a few lines.
"""

import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES, TARGET = ROOT / "protos", ROOT / "medha_jax" / "protos"


def generate() -> dict[str, str]:
    """Compile every .proto file.

    Returns:
        Content of each generated file by name, for medha_jax/protos/.

    Raises:
        ValueError: a .proto file does not compile; protoc has said why on stderr.
    """
    from grpc_tools import protoc

    sources = sorted(str(file.relative_to(SOURCES)) for file in SOURCES.rglob("*.proto"))
    common = str(resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as made:
        arguments = ["protoc", f"-I{SOURCES}", f"-I{common}", f"--python_out={made}", f"--pyi_out={made}", *sources]
        if protoc.main(arguments):
            raise ValueError(f"protoc refused {', '.join(sources)}")
        # all modules go into one package, regardless of the sources' folders
        return {
            file.name: file.read_text(encoding="utf-8").replace("from medha.v1 import", "from medha_jax.protos import")
            for file in sorted(Path(made).rglob("*_pb2.py*"))
        }


def main() -> int:
    """Write the modules; return the process's exit status."""
    for name, content in generate().items():
        (TARGET / name).write_text(content, encoding="utf-8")
        print(TARGET.relative_to(ROOT) / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
