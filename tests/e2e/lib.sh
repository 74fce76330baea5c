# What the checks share: a server of their own, and a line for each thing that was checked.
# To be sourced, by bash with `set -euo pipefail`. Needs the path of the binary in $PACENOTE.
# shellcheck shell=bash disable=SC2034

: "${PACENOTE:?the path of the pacenote binary}"
[[ -x $PACENOTE ]] || { echo "there is no program $PACENOTE" >&2; exit 2; }
PACENOTE=$(realpath "$PACENOTE")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
server_pid=
address=
checked=0
failed=0
export NO_COLOR=1
# Settings of whoever runs this are not ours.
unset "${!PACENOTE_@}"

# Ends what was started here, and takes the folder along.
clean_up() {
    local code=$?
    stop_server KILL
    rm -rf "$work"
    exit "$code"
}
trap clean_up EXIT

# missing WHAT: ends loudly, and in CI as a failure.
missing() {
    if [[ ${CI:-} == true ]]; then
        echo "FAILED: $1" >&2
        exit 1
    fi
    echo "SKIPPED, nothing was checked: $1" >&2
    exit 0
}

# need TOOL...: all of them.
need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || missing "$tool is missing"
    done
}

# start_server ARGUMENT...: starts a server on a free port; its store and log are in $work.
start_server() {
    : >"$work/server.log"
    (cd "$work" && exec "$PACENOTE" serve --listen 127.0.0.1:0 "$@" 2>"$work/server.log") &
    server_pid=$!
    local try
    for try in {1..200}; do
        address=$(sed -n 's/^listening on //p' "$work/server.log")
        [[ -n $address ]] && return
        kill -0 "$server_pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "FAILED: the server did not start ($try looks):" >&2
    cat "$work/server.log" >&2
    exit 1
}

# stop_server [SIGNAL]: default TERM. Sets $server_code.
stop_server() {
    server_code=0
    if [[ -n $server_pid ]]; then
        kill -"${1:-TERM}" "$server_pid" 2>/dev/null || true
        wait "$server_pid" 2>/dev/null || server_code=$?
        server_pid=
    fi
}

ok() {
    checked=$((checked + 1))
    echo "  ok    $1"
}

bad() {
    failed=$((failed + 1))
    echo "  FAILED $1"
    shift
    printf '        %s\n' "$@"
}

# same SENTENCE EXPECTED ACTUAL
same() {
    if [[ $2 == "$3" ]]; then ok "$1"; else bad "$1" "expected: $2" "actual:   $3"; fi
}

# holds SENTENCE TEXT PART
holds() {
    if [[ $2 == *"$3"* ]]; then ok "$1"; else bad "$1" "expected a part: $3" "actual: $2"; fi
}

# true_of SENTENCE JQ-FILTER JSON: the filter, over all values as one array, has to say true.
true_of() {
    if jq --slurp --exit-status "$2" <<<"$3" >/dev/null 2>&1; then
        ok "$1"
    else
        bad "$1" "not true: $2" "of: ${3:0:2000}"
    fi
}

summary() {
    echo "$checked checks passed, $failed failed"
    ((failed == 0))
}
