#!/usr/bin/env bash
# The client for Python, with its own tests, against servers of their own.
#
#   PACENOTE=target/debug/pacenote PYTHON=venv/bin/python tests/e2e/client-python.sh
#
# PYTHON needs grpcio-tools, grpcio-status and pytest.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

PYTHON=${PYTHON:-python3}
need "$PYTHON"
"$PYTHON" -c 'import grpc_tools, grpc_status, pytest' 2>/dev/null ||
    missing "$PYTHON lacks grpcio-tools, grpcio-status or pytest"
# A copy, so that what is generated stays out of the tree.
cp -r "$root/clients/python/src" "$work/src"
"$PYTHON" "$root/clients/python/generate.py" "$work/src"
export PYTHONDONTWRITEBYTECODE=1
PYTHONPATH=$work/src PACENOTE=$PACENOTE "$PYTHON" -m pytest -p no:cacheprovider --basetemp="$work/tests" \
    "$root/clients/python" "$@"
