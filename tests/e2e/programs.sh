#!/usr/bin/env bash
# Programs as jobs: the three of examples/programs, with their progress seen before their end.
#
#   PACENOTE=target/debug/pacenote tests/e2e/programs.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need python3 rsync jq
start_server --config "$root/examples/programs/pacenote.toml"
cd "$work"

# Megabytes to be copied, and how many of them a second.
copy_mb=300
copy_mb_per_second=50

# client COMMAND ARGUMENT...: the command line as a client, with JSON lines on stdout.
client() {
    "$PACENOTE" "$@" --json --quiet --server "$address"
}

# events ID: the log as it is now, as one array.
events() {
    client events "$1" | jq --slurp .
}

# live ID: waits until progress between 0 and 1 is in the log, and says what state the job has then.
live() {
    local try log
    for try in {1..100}; do
        log=$(events "$1")
        if jq --exit-status '[.[].progress.fraction // empty] | any(. > 0 and . < 1)' <<<"$log" >/dev/null; then
            client get "$1" | jq --raw-output .state
            return
        fi
        sleep 0.1
    done
    echo "no progress after $try looks"
}

# ended ID: waits for its end; the job.
ended() {
    client wait "$1" || true
}

# submit TYPE JSON: its id.
submit() {
    client submit "$1" --input "$2" | jq --raw-output '.jobId // .job.jobId'
}

echo "a Python script that writes events"
id=$(submit pages '{"title": "Rally", "pages": 12}')
same "its progress is seen while it runs" STATE_RUNNING "$(live "$id")"
job=$(ended "$id")
true_of "its result is what it told" '.[0] | .state == "STATE_SUCCEEDED" and .result.json == {"title": "Rally", "pages": 12}' "$job"
log=$(events "$id")
true_of "every page was told, with its unit" \
    '[.[0][].progress // empty] | last | .completedUnits == "12" and .totalUnits == "12" and .unit == "pages"' "$log"
true_of "its output came line by line" '[.[0][].output // empty | .chunk.text] | length > 4 and (join("") | startswith("page 1\npage 2\n"))' "$log"
true_of "its sequences are dense" '.[0] | [.[].sequence | tonumber] | . == [range(1; length + 1)]' "$log"

echo "the same after the server was killed half-way"
id=$(submit pages '{"title": "Twice", "pages": 30}')
live "$id" >/dev/null
sleep 0.5
stop_server KILL
start_server --config "$root/examples/programs/pacenote.toml"
job=$(ended "$id")
true_of "the second attempt succeeded" '.[0] | .state == "STATE_SUCCEEDED" and .attempt == 2' "$job"
true_of "and went on from the checkpoint: no page was done in both attempts" \
    '[.[0][] | select(.output) | .output.chunk.text] | join("") | [scan("page (\\d+)\n") | .[0] | tonumber] | length <= 31 and unique == [range(1; 31)]' \
    "$(events "$id")"

echo "a shell script"
id=$(submit steps '{"name": "Ada; rm -rf /"}')
same "its progress is seen while it runs" STATE_RUNNING "$(live "$id")"
job=$(ended "$id")
same "its result is what it printed, and its argument went through no shell" \
    "done for Ada; rm -rf /" "$(jq --raw-output .result.text <<<"$job")"
log=$(events "$id")
true_of "its steps were told" '[.[0][].progress // empty | .fraction] == [0.3, 0.6, 0.9]' "$log"
true_of "so was its warning" '[.[0][].log // empty] | any(.level == "LEVEL_WARN")' "$log"
true_of "a missing field is refused before anything is stored" '.[0].code == 5' \
    "$(code=0; client submit steps --input '{}' >/dev/null 2>&1 || code=$?; echo "{\"code\":$code}")"

echo "rsync, which knows nothing of us, copying $copy_mb MB"
mkdir from
for file in 1 2 3; do
    head -c "$((copy_mb / 3))M" /dev/zero >"from/$file"
done
id=$(submit copy "{\"from\": \"$work/from/\", \"to\": \"$work/to/\", \"limit\": \"${copy_mb_per_second}m\"}")
same "its progress is seen while it runs" STATE_RUNNING "$(live "$id")"
job=$(ended "$id")
true_of "it has copied all" '.[0].state == "STATE_SUCCEEDED" and (.[0].progress.fraction == 1)' "$job"
if cmp from/3 to/3; then ok "the copy is the same"; else bad "the copy is the same"; fi
log=$(events "$id")
true_of "its bar became progress, step by step" \
    '[.[0][].progress // empty | .fraction] | length > 3 and . == sort and last == 1' "$log"
rm -r to
id=$(submit copy "{\"from\": \"$work/from/\", \"to\": \"$work/to/\", \"limit\": \"10m\"}")
live "$id" >/dev/null
started=$SECONDS
client cancel "$id" >/dev/null
true_of "a cancel ends it" '.[0].state == "STATE_CANCELLED"' "$(ended "$id")"
true_of "at once" "$((SECONDS - started)) < 4" 1
same "and nothing of it is left" "" "$(pgrep -f "rsync .*$work" || true)"

echo "rsync, when the server is killed under it"
rm -r to
id=$(submit copy "{\"from\": \"$work/from/\", \"to\": \"$work/to/\", \"limit\": \"10m\"}")
live "$id" >/dev/null
before=$(pgrep -f "rsync .*$work")
stop_server KILL
start_server --config "$root/examples/programs/pacenote.toml"
left=
for pid in $before; do
    # A zombie does nothing any more: it waits for whoever is process 1 here.
    state=$(ps -o state= -p "$pid" || true)
    [[ -z $state || $state == Z ]] || left+=" $pid($state)"
done
same "what it left running is gone once the next server serves" "" "$left"
same "the second attempt runs" STATE_RUNNING "$(live "$id")"
client cancel "$id" >/dev/null
true_of "and can be cancelled" '.[0] | .state == "STATE_CANCELLED" and .attempt == 2' "$(ended "$id")"

stop_server TERM
same "after TERM the server exits with 0" 0 "$server_code"
summary
