"""Generates messages and stubs from the proto files: `python generate.py [FOLDER]`, by default into src."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"


def main(folder: Path) -> int:
    """Answers protoc's exit code."""
    options = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("pacenote/v1/*.proto"))
    code = protoc.main(["protoc", f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}", *options, *sources])
    if code == 0:
        (folder / "pacenote/v1/__init__.py").write_text('"""Generated from the proto files by generate.py."""\n')
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "src")))
