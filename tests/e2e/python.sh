#!/usr/bin/env bash
# A client in Python, generated from the published proto files, against a server of its own.
#
#   PACENOTE=target/debug/pacenote PYTHON=venv/bin/python tests/e2e/python.sh
#
# PYTHON needs grpcio-tools, grpcio-status, grpcio-health-checking and grpcio-reflection.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

PYTHON=${PYTHON:-python3}
need "$PYTHON"
if ! "$PYTHON" -c 'import grpc_tools, grpc_status, grpc_health, grpc_reflection' 2>/dev/null; then
    if [[ ${CI:-} == true ]]; then
        echo "FAILED: $PYTHON lacks grpcio-tools, grpcio-status, grpcio-health-checking or grpcio-reflection" >&2
        exit 1
    fi
    echo "SKIPPED, nothing was checked: $PYTHON lacks the grpcio packages" >&2
    exit 0
fi
"$PYTHON" -m grpc_tools.protoc -I "$root/proto" --python_out="$work" --grpc_python_out="$work" \
    pacenote/v1/job.proto pacenote/v1/job_service.proto
PYTHONPATH=$work PACENOTE=$PACENOTE "$PYTHON" "$here/client.py"

# The client of the README, as it stands there.
start_server
told=$(PYTHONPATH=$work "$PYTHON" "$root/examples/python/watch.py" "$address")
holds "the client of the README sees the progress" "$told" "100%"
holds "and the result" "$told" '{"slept_seconds": 2.0}'
if "$PYTHON" - "$root" <<'PYTHON'; then ok "the README shows it as it is"; else bad "the README shows it as it is"; fi
import pathlib, sys
root = pathlib.Path(sys.argv[1])
code = (root / "examples/python/watch.py").read_text()
sys.exit("```python\n" + code + "```\n" not in (root / "README.md").read_text())
PYTHON
summary
