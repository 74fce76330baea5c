#!/usr/bin/env bash
# Every call with a real grpcurl that knows no proto file: it learns everything by reflection.
#
#   PACENOTE=target/debug/pacenote tests/e2e/grpcurl.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need grpcurl jq
start_server
cd "$work"

jobs=pacenote.v1.JobService
queues=pacenote.v1.QueueService
workers=pacenote.v1.WorkerService

# call METHOD JSON [OPTION...]: the answer on stdout. Not run in the repository: no proto file is at hand.
call() {
    local method=$1 json=$2
    shift 2
    grpcurl -plaintext "$@" -d "$json" "$address" "$method"
}

# refusal METHOD JSON [OPTION...]: what it says when it fails; nothing where it does not.
refusal() {
    { call "$@" >/dev/null; } 2>&1 || true
}

# sequences JSON: of every event in these messages of a watch or a run, on one line.
sequences() {
    jq --slurp --raw-output '[.[] | (.update // .).events.events // [] | .[].sequence] | join(" ")' <<<"$1"
}

# The cursor to resume from: of the last message.
through() {
    jq --slurp --raw-output 'last | .throughSequence // "0"' <<<"$1"
}

echo "reflection"
services=$(grpcurl -plaintext "$address" list)
holds "list names the job service" "$services" "$jobs"
holds "list names the health service" "$services" grpc.health.v1.Health
methods=$(grpcurl -plaintext "$address" list $jobs)
same "the job service has its calls" \
    "BatchSubmit Cancel Delete DeleteMany Get List ListEvents Retry RetryMany Run Submit Wait WatchJob WatchJobs" \
    "$(sort <<<"${methods//$jobs./}" | xargs)"
holds "list names the queue service" "$services" "$queues"
methods=$(grpcurl -plaintext "$address" list $queues)
same "the queue service has its eight calls" \
    "ListJobTypes ListQueues PauseJobType PauseQueue PurgeQueue ResumeJobType ResumeQueue SetQueueLimits" \
    "$(sort <<<"${methods//$queues./}" | xargs)"
holds "list names the worker service" "$services" "$workers"
methods=$(grpcurl -plaintext "$address" list $workers)
same "the worker service has its four calls" "ExtendLeases Finish Lease Report" \
    "$(sort <<<"${methods//$workers./}" | xargs)"
described=$(grpcurl -plaintext "$address" describe $jobs)
holds "describe shows the comments" "$described" "Stores the job and answers once it is on disk."
holds "describe shows the status codes" "$described" "IDEMPOTENCY_KEY_REUSED"
holds "describe shows a message" "$(grpcurl -plaintext "$address" describe pacenote.v1.Progress)" estimated_end_time
holds "describe shows a health message" \
    "$(grpcurl -plaintext "$address" describe grpc.health.v1.HealthCheckResponse)" SERVING

echo "health"
same "the server as a whole serves" SERVING "$(call grpc.health.v1.Health/Check '{}' | jq -r .status)"
same "the job service serves" SERVING \
    "$(call grpc.health.v1.Health/Check "{\"service\":\"$jobs\"}" | jq -r .status)"
holds "an unknown service is NOT_FOUND" \
    "$(refusal grpc.health.v1.Health/Check '{"service":"nope"}')" "Code: NotFound"
for service in "" "$jobs"; do
    watched=$(call grpc.health.v1.Health/Watch "{\"service\":\"$service\"}" -max-time 1 2>/dev/null || true)
    true_of "Health/Watch of '$service' tells at once" '.[0].status == "SERVING"' "$watched"
done

echo "Submit, Get, Wait"
submit='{"type":"sleep","input":{"json":{"seconds":0.4}},"labels":{"team":"docs"},"idempotency_key":"k-1"}'
submitted=$(call $jobs/Submit "$submit")
id=$(jq -r .job.jobId <<<"$submitted")
true_of "Submit answers with an id" '.[0].job.jobId | test("^[0-9a-f-]{36}$")' "$submitted"
true_of "Submit answers without the input" '.[0].job | has("input") | not' "$submitted"
true_of "the job keeps its labels" '.[0].job.labels.team == "docs"' "$submitted"
again=$(call $jobs/Submit "$submit")
true_of "the same key gives the same job, said as deduplicated" ".[0] | .deduplicated and .job.jobId == \"$id\"" "$again"
other=${submit/0.4/0.5}
holds "the same key with another request is ALREADY_EXISTS" "$(refusal $jobs/Submit "$other")" "Code: AlreadyExists"
waited=$(call $jobs/Wait "{\"job_id\":\"$id\",\"timeout\":\"20s\"}")
true_of "Wait answers with the result" '.[0].job | .state == "STATE_SUCCEEDED" and .result.json.slept_seconds == 0.4' "$waited"
true_of "Wait did not time out" '.[0] | .timedOut | not' "$waited"
got=$(call $jobs/Get "{\"job_id\":\"$id\"}")
true_of "Get shows everything" '.[0].job | .input.json.seconds == 0.4 and .progress.fraction == 1 and (.endTime | length > 0)' "$got"
true_of "Get shows less if asked" '.[0].job | has("input") or has("result") | not' \
    "$(call $jobs/Get "{\"job_id\":\"$id\",\"view\":\"JOB_VIEW_BASIC\"}")"

echo "queues"
bounded=$(call $queues/SetQueueLimits '{"queue":"held","concurrency":2,"rate_limit":{"starts":100,"period":"1s"}}')
true_of "SetQueueLimits answers what holds and who said so" \
    '.[0].queue.limits | .concurrency == 2 and .rateLimit.starts == 100 and .concurrencySource == "SOURCE_RUNTIME"' "$bounded"
true_of "PauseQueue pauses" '.[0].queue | .paused and (.pauseTime | length > 0)' \
    "$(call $queues/PauseQueue '{"queue":"held"}')"
call $jobs/Submit '{"type":"sleep","input":{"json":{"seconds":0}},"queue":"held"}' >/dev/null
listed=$(call $queues/ListQueues '{}')
true_of "ListQueues counts what waits" '.[0].queues[] | select(.name == "held") | .counts.queued == "1"' "$listed"
true_of "ListJobTypes counts it, too" '.[0].jobTypes[] | select(.name == "sleep") | .counts.queued == "1"' \
    "$(call $queues/ListJobTypes '{}')"
true_of "PurgeQueue ends it" '.[0] | .purgedCount == 1 and .isComplete' "$(call $queues/PurgeQueue '{"queue":"held"}')"
true_of "ResumeQueue resumes" '.[0].queue | has("paused") | not' "$(call $queues/ResumeQueue '{"queue":"held"}')"
true_of "PauseJobType pauses" '.[0].jobType.paused' "$(call $queues/PauseJobType '{"job_type":"checksum"}')"
true_of "ResumeJobType resumes" '.[0].jobType | has("paused") | not' \
    "$(call $queues/ResumeJobType '{"job_type":"checksum"}')"
holds "a limit past its bound is refused with it" \
    "$(refusal $queues/SetQueueLimits '{"queue":"held","concurrency":100001}')" "1 to 100000"

echo "refusals"
refused=$(refusal $jobs/Submit '{"type":"slep","priority":5000,"queue":"a//b"}')
holds "a bad request is INVALID_ARGUMENT" "$refused" "Code: InvalidArgument"
holds "it names the nearest type" "$refused" "sleep"
holds "it names every bad field, with the bound" "$refused" "-1000 to 1000"
holds "also the third" "$refused" "queue"
holds "an unknown job is NOT_FOUND" \
    "$(refusal $jobs/Get '{"job_id":"01987654-0000-7000-8000-000000000000"}')" "Code: NotFound"
holds "so is its watch, at once" \
    "$(refusal $jobs/WatchJob '{"job_id":"01987654-0000-7000-8000-000000000000"}')" "Code: NotFound"
holds "what is no id is INVALID_ARGUMENT" "$(refusal $jobs/Get '{"job_id":"nope"}')" "Code: InvalidArgument"
holds "a cursor ahead of the log is FAILED_PRECONDITION" \
    "$(refusal $jobs/WatchJob "{\"job_id\":\"$id\",\"after_sequence\":1000}")" "Code: FailedPrecondition"

echo "Run"
run=$(call $jobs/Run '{"submit":{"type":"sleep","input":{"json":{"seconds":0.5}}}}')
true_of "the first message is a snapshot with sequence 0" \
    '.[0].update | has("snapshot") and ((.throughSequence // "0") == "0")' "$run"
true_of "the last message is the finished job" \
    'last.update.snapshot | .state == "STATE_SUCCEEDED" and .result.json.slept_seconds == 0.5' "$run"
true_of "its events are 1, 2, 3, … without a hole" \
    '[.[].update.events.events // [] | .[].sequence | tonumber] | . == [range(1; length + 1)] and length > 5' "$run"
true_of "its progress comes before its end, and grows" \
    '[.[].update.events.events // [] | .[].progress.fraction // empty] | length > 2 and . == sort' "$run"

echo "WatchJob, cut and resumed"
submitted=$(call $jobs/Submit '{"type":"sleep","input":{"json":{"seconds":3}}}')
id=$(jq -r .job.jobId <<<"$submitted")
refused=$(call $jobs/WatchJob "{\"job_id\":\"$id\",\"after_sequence\":0}" -max-time 1 2>&1 >first || true)
first=$(<first)
holds "the first watch is cut by its deadline" "$refused" "Code: DeadlineExceeded"
cut=$(through "$first")
true_of "it had seen part of the log" "$cut > 3" 1
true_of "the job goes on" '.[0].job.state == "STATE_RUNNING"' "$(call $jobs/Get "{\"job_id\":\"$id\"}")"
rest=$(call $jobs/WatchJob "{\"job_id\":\"$id\",\"after_sequence\":$cut}")
last=$(through "$rest")
same "both parts are the whole log: none missing, none double" "$(seq -s ' ' 1 "$last")" \
    "$(sequences "$first") $(sequences "$rest")"
true_of "a resumed watch begins without a snapshot" '.[0] | has("events")' "$rest"
true_of "and ends with one" 'last.snapshot.state == "STATE_SUCCEEDED"' "$rest"
same "later, all of it is there again" "$(seq -s ' ' 1 "$last")" \
    "$(sequences "$(call $jobs/WatchJob "{\"job_id\":\"$id\",\"after_sequence\":0}")")"
true_of "a watch of a finished job is one snapshot" 'length == 1 and (.[0].snapshot.result.json.slept_seconds == 3)' \
    "$(call $jobs/WatchJob "{\"job_id\":\"$id\"}")"
states=$(call $jobs/WatchJob "{\"job_id\":\"$id\",\"after_sequence\":0,\"event_types\":[\"EVENT_TYPE_STATE_CHANGE\"]}")
true_of "a filter leaves the three changes of state" \
    '[.[].events.events // [] | .[]] | length == 3 and all(has("stateChange"))' "$states"
same "and its cursor covers what was hidden" "$last" "$(through "$states")"

echo "ListEvents"
page=$(call $jobs/ListEvents "{\"job_id\":\"$id\",\"page_size\":4}")
true_of "a page has what was asked for" '.[0] | (.events | length == 4) and .throughSequence == "4" and (.jobFinished | not)' "$page"
page=$(call $jobs/ListEvents "{\"job_id\":\"$id\",\"after_sequence\":4,\"page_size\":1000}")
true_of "the next one goes on behind it, to the end" \
    ".[0] | .events[0].sequence == \"5\" and .throughSequence == \"$last\" and .jobFinished" "$page"

echo "Cancel"
id=$(call $jobs/Submit '{"type":"sleep","input":{"json":{"seconds":600}}}' | jq -r .job.jobId)
cancelled=$(call $jobs/Cancel "{\"job_id\":\"$id\",\"reason\":\"wrong input\"}")
true_of "Cancel is taken" '.[0].job.state | . == "STATE_CANCELLING" or . == "STATE_CANCELLED"' "$cancelled"
waited=$(call $jobs/Wait "{\"job_id\":\"$id\"}")
true_of "the job ends as cancelled, with the reason" \
    '.[0].job | .state == "STATE_CANCELLED" and .cancelReason == "wrong input"' "$waited"
true_of "cancelling again changes nothing" '.[0].job.state == "STATE_CANCELLED"' \
    "$(call $jobs/Cancel "{\"job_id\":\"$id\"}")"
true_of "a Wait that runs out of time is no error" '.[0] | .timedOut and .job.state == "STATE_RUNNING"' "$(
    id=$(call $jobs/Submit '{"type":"sleep","input":{"json":{"seconds":5}}}' | jq -r .job.jobId)
    call $jobs/Wait "{\"job_id\":\"$id\",\"timeout\":\"0.3s\"}"
)"

echo "List"
true_of "newest first" '.[0].jobs | length >= 5 and ([.[].jobId] | . == (sort | reverse))' "$(call $jobs/List '{}')"
true_of "by state" '.[0].jobs | length >= 1 and all(.[]; .state == "STATE_CANCELLED")' \
    "$(call $jobs/List '{"states":["STATE_CANCELLED"]}')"
true_of "by key" '.[0].jobs | length == 1 and .[0].idempotencyKey == "k-1"' \
    "$(call $jobs/List '{"idempotency_key":"k-1"}')"
page=$(call $jobs/List '{"page_size":3}')
token=$(jq -r .nextPageToken <<<"$page")
true_of "the next page goes on where the last one ended" \
    ".[0].jobs | length >= 2 and all(.[]; .jobId < $(jq '.jobs[-1].jobId' <<<"$page"))" \
    "$(call $jobs/List "{\"page_size\":3,\"page_token\":\"$token\"}")"
holds "a token for another filter is refused" \
    "$(refusal $jobs/List "{\"types\":[\"checksum\"],\"page_token\":\"$token\"}")" "Code: InvalidArgument"

echo "a delayed Submit"
due=$(call $jobs/Submit '{"type":"sleep","input":{"json":{"seconds":0}},"delay":"0.5s","retry_policy":{"max_attempts":1}}')
true_of "it waits for its time" \
    '.[0].job | .state == "STATE_SCHEDULED" and .scheduleTime > .createTime and .retryPolicy.maxAttempts == 1' "$due"
ended=$(call $jobs/Wait "{\"job_id\":\"$(jq -r .job.jobId <<<"$due")\",\"timeout\":\"20s\"}")
true_of "and then runs" '.[0].job | .state == "STATE_SUCCEEDED" and .startTime >= "'"$(jq -r .job.scheduleTime <<<"$due")"'"' "$ended"
true_of "what is only checked is no job" '.[0] | has("job") | not' \
    "$(call $jobs/Submit '{"type":"sleep","validate_only":true}')"

echo "BatchSubmit"
batch='{"requests":[{"type":"sleep","input":{"json":{"seconds":0}},"idempotency_key":"b-1"},{"type":"sleep","input":{"json":{"seconds":0}},"idempotency_key":"b-2"}]}'
submitted=$(call $jobs/BatchSubmit "$batch")
true_of "it answers with an id and two jobs of it" \
    '.[0] | .batchId as $id | (.batchId | test("^[0-9a-f-]{36}$")) and ([.responses[].job.batchId] == [$id, $id])' "$submitted"
true_of "in the order of the requests" '[.[0].responses[].job.idempotencyKey] == ["b-1", "b-2"]' "$submitted"
again=$(call $jobs/BatchSubmit "$batch")
true_of "sent again it is the same batch, said as deduplicated" \
    ".[0] | .batchId == \"$(jq -r .batchId <<<"$submitted")\" and ([.responses[].deduplicated] == [true, true])" "$again"
stored=$(call $jobs/List '{}' | jq '.jobs | length')
refused=$(refusal $jobs/BatchSubmit '{"requests":[{"type":"sleep"},{"type":"slep"},{"type":"sleep","priority":5000}]}')
holds "a bad item is named" "$refused" "requests[1].type"
holds "so is the next one" "$refused" "requests[2].priority"
true_of "nothing of it was stored" ".[0].jobs | length == $stored" "$(call $jobs/List '{}')"

echo "dead letters: list, look, retry, delete"
for seconds in 700 701 702; do
    id=$(call $jobs/Submit "{\"type\":\"sleep\",\"labels\":{\"flow\":\"dead\"},\"input\":{\"json\":{\"seconds\":$seconds}}}" | jq -r .job.jobId)
    call $jobs/Cancel "{\"job_id\":\"$id\"}" >/dev/null
    call $jobs/Wait "{\"job_id\":\"$id\"}" >/dev/null
done
dead='"states":["STATE_CANCELLED"],"types":["sleep"],"labels":{"flow":"dead"},"ended_after":"2020-01-01T00:00:00Z"'
listed=$(call $jobs/List "{$dead}")
true_of "one filter finds them" '.[0].jobs | length == 3' "$listed"
id=$(jq -r '.jobs[0].jobId' <<<"$listed")
true_of "one of them shows its input" '.[0].job.input.json.seconds == 702' "$(call $jobs/Get "{\"job_id\":\"$id\"}")"
retried=$(call $jobs/Retry "{\"job_id\":\"$id\"}")
true_of "it is retried by hand" ".[0].job | .retryOfJobId == \"$id\" and .labels.flow == \"dead\"" "$retried"
true_of "asking again answers the same" ".[0] | .deduplicated and .job.jobId == $(jq .job.jobId <<<"$retried")" \
    "$(call $jobs/Retry "{\"job_id\":\"$id\"}")"
many=$(call $jobs/RetryMany "{$dead}")
true_of "the same filter retries the others, and says which was before" \
    ".[0] | (.retried | length == 2) and .skipped == [{jobId: \"$id\", reason: \"NOT_RETRYABLE\", newJobId: $(jq .job.jobId <<<"$retried")}] and (has(\"nextPageToken\") | not)" "$many"
new=$(jq -r '.retried[0].newJobId' <<<"$many")
holds "what is not over is not deleted" "$(refusal $jobs/Delete "{\"job_id\":\"$new\"}")" "Code: FailedPrecondition"
holds "nor retried" "$(refusal $jobs/Retry "{\"job_id\":\"$new\"}")" "NOT_RETRYABLE"
call $jobs/Delete "{\"job_id\":\"$id\"}" >/dev/null
holds "what was deleted is gone" "$(refusal $jobs/Get "{\"job_id\":\"$id\"}")" "Code: NotFound"
true_of "the same filter deletes the rest" '.[0].deletedCount == 2' "$(call $jobs/DeleteMany "{$dead}")"
true_of "and finds nothing more" '.[0].jobs // [] | length == 0' "$(call $jobs/List "{$dead}")"
holds "no filter deletes nothing" "$(refusal $jobs/DeleteMany '{}')" "Code: InvalidArgument"

echo "a worker by hand"
ask='"worker_id":"me","types":["resize"]'
same "there is nothing yet" '["waited"]' "$(call $workers/Lease "{$ask,\"wait\":\"0s\"}" | jq -c keys)"
call $workers/Lease "{$ask}" -max-time 20 >leased &
lease_pid=$!
id=$(call $jobs/Submit '{"type":"resize","input":{"json":{"file":"a.jpg"}}}' | jq -r .job.jobId)
wait "$lease_pid"
true_of "who waits gets the job as it comes" \
    ".[0].leasedJobs | length == 1 and .[0].job.jobId == \"$id\" and .[0].job.input.json.file == \"a.jpg\"" "$(<leased)"
token=$(jq -r '.leasedJobs[0].leaseToken' <leased)
report="{\"lease_token\":\"$token\",\"report_number\":1,\"checkpoint\":{\"text\":\"here\"},\"events\":[{\"output\":{\"stream\":\"log\",\"chunk\":{\"text\":\"half\"}}},{\"progress\":{\"fraction\":0.5}}]}"
for _ in 1 2; do call $workers/Report "$report" >/dev/null; done
log=$(call $jobs/ListEvents "{\"job_id\":\"$id\",\"event_types\":[\"EVENT_TYPE_OUTPUT\"]}")
true_of "a report that is sent twice is stored once" '.[0].events | length == 1 and .[0].output.chunk.text == "half"' "$log"
stop_server KILL
start_server
report="{\"lease_token\":\"$token\",\"report_number\":1,\"events\":[{\"output\":{\"stream\":\"log\",\"chunk\":{\"text\":\"half\"}}}]}"
call $workers/Report "$report" >/dev/null
log=$(call $jobs/ListEvents "{\"job_id\":\"$id\",\"event_types\":[\"EVENT_TYPE_OUTPUT\"]}")
true_of "nor by the next server, after a kill -9: the lease holds there" '.[0].events | length == 1' "$log"
call $jobs/Cancel "{\"job_id\":\"$id\",\"reason\":\"enough\"}" >/dev/null
true_of "a cancel comes with the next word" '.[0] | .cancelRequested and .cancelReason == "enough"' \
    "$(call $workers/Report "{\"lease_token\":\"$token\"}")"
true_of "and with a renewal" '.[0].leases[0].cancelRequested' \
    "$(call $workers/ExtendLeases "{\"lease_tokens\":[\"$token\"]}")"
end="{\"lease_token\":\"$token\",\"cancelled\":{}}"
for _ in 1 2; do
    same "its end, told once or twice, is CANCELLED" STATE_CANCELLED "$(call $workers/Finish "$end" | jq -r .job.state)"
done
refused=$(refusal $workers/Finish "{\"lease_token\":\"$token\",\"result\":{\"text\":\"late\"}}")
holds "any other end is refused" "$refused" "STALE_LEASE"
holds "a token that is none is named" "$(refusal $workers/Report '{"lease_token":"x"}')" "lease_token"

echo "drain"
call grpc.health.v1.Health/Watch "{\"service\":\"$jobs\"}" -max-time 20 >health 2>/dev/null &
health_pid=$!
id=$(call $jobs/Submit '{"type":"sleep","input":{"json":{"seconds":2}}}' | jq -r .job.jobId)
call $jobs/WatchJob "{\"job_id\":\"$id\"}" >drained 2>&1 &
watch_pid=$!
sleep 0.5
stop_server TERM
wait "$health_pid" || true
wait "$watch_pid" || true
same "after TERM it exits with 0" 0 "$server_code"
holds "its watch ended with UNAVAILABLE" "$(<drained)" "Code: Unavailable"
true_of "health told it before" '[.[].status] | . == ["SERVING", "NOT_SERVING"]' "$(<health)"

summary
