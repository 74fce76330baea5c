"""A Python client as a user would write it, run against a server of its own by python.sh.

Each check is a function; its name is the sentence that is printed.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from pacenote.v1 import job_pb2, job_service_pb2 as api, job_service_pb2_grpc

STATE = job_pb2.Job.State
# What a client of any language should set: see docs/protocol.md.
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class Server:
    """A server on a free port, on a store that outlives it."""

    def __init__(self, folder):
        self.folder = folder
        self.start()

    def start(self):
        log_path = os.path.join(self.folder, "server.log")
        with open(log_path, "w") as log:
            self.process = subprocess.Popen(
                [os.environ["PACENOTE"], "serve", "--listen", "127.0.0.1:0"],
                cwd=self.folder,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with open(log_path) as log:
                found = re.search(r"^listening on (\S+)$", log.read(), re.M)
            if found:
                self.address = found.group(1)
                return
            time.sleep(0.02)
        raise RuntimeError("the server did not start: " + open(log_path).read())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart_after_kill(self):
        self.kill()
        self.start()


def stub(server, **options):
    channel = grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS, **options)
    return job_service_pb2_grpc.JobServiceStub(channel)


def json_input(value):
    return job_pb2.Payload(json=ParseDict(value, Value()))


def submit(jobs, job_type="sleep", value=None, **more):
    request = api.SubmitRequest(type=job_type, input=json_input(value or {}), **more)
    return jobs.Submit(request, timeout=10).job


def refused(call):
    """The status of a call that has to fail, its reason, and its details by type."""
    try:
        call()
    except grpc.RpcError as error:
        details = {}
        for detail in rpc_status.from_call(error).details:
            name = detail.TypeName().removeprefix("google.rpc.")
            message = getattr(error_details_pb2, name)()
            assert detail.Unpack(message)
            details[name] = message
        info = details["ErrorInfo"]
        assert info.domain == "pacenote.dev", info
        return error.code(), info.reason, details
    raise AssertionError("the call was not refused")


def read(watch, log, cursor, stop_after=None):
    """Adds a watch's events to the log; the cursor after it, and the final job if it came."""
    finished = None
    for message in watch:
        kind = message.WhichOneof("content")
        if kind == "events":
            for event in message.events.events:
                assert event.sequence > cursor, "an event below the cursor"
                log.append(event)
        elif kind == "snapshot" and message.snapshot.HasField("end_time"):
            finished = message.snapshot
        assert message.through_sequence >= cursor, "the cursor went back"
        cursor = message.through_sequence
        if stop_after is not None and len(log) >= stop_after:
            watch.cancel()
            break
    return cursor, finished


def dense(log):
    sequences = [event.sequence for event in log]
    assert sequences == list(range(1, len(sequences) + 1)), sequences


def a_job_goes_from_submit_to_its_result(server):
    jobs = stub(server)
    job = submit(jobs, value={"seconds": 0.5})
    log = []
    cursor, end = read(jobs.WatchJob(api.WatchJobRequest(job_id=job.job_id, after_sequence=0)), log, 0)
    dense(log)
    assert end.state == STATE.STATE_SUCCEEDED and cursor == end.last_sequence == len(log)
    assert end.result.json.struct_value["slept_seconds"] == 0.5
    fractions = [event.progress.fraction for event in log if event.HasField("progress")]
    assert len(fractions) > 3 and fractions == sorted(fractions) and fractions[-1] == 1
    assert log[-1].state_change.to_state == STATE.STATE_SUCCEEDED


def a_watch_that_is_cut_at_every_event_loses_nothing(server):
    jobs = stub(server)
    job = submit(jobs, value={"seconds": 2})
    log, cursor, end, cuts = [], 0, None, 0
    while end is None:
        watch = jobs.WatchJob(api.WatchJobRequest(job_id=job.job_id, after_sequence=cursor))
        cursor, end = read(watch, log, cursor, stop_after=len(log) + 1)
        cuts += 1
    dense(log)
    assert cuts > 10 and end.last_sequence == len(log)


def a_watch_goes_on_after_the_server_was_killed_and_started_again(server):
    jobs = stub(server)
    job = submit(jobs, value={"seconds": 2})
    log, cursor = [], 0
    watch = jobs.WatchJob(api.WatchJobRequest(job_id=job.job_id, after_sequence=0))
    try:
        for message in watch:
            log.extend(message.events.events)
            cursor = message.through_sequence
            if len(log) >= 5:
                server.kill()
        raise AssertionError("the watch ended with OK although the job is not over")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error.code()
    server.start()
    jobs = stub(server)
    watch = jobs.WatchJob(api.WatchJobRequest(job_id=job.job_id, after_sequence=cursor))
    cursor, end = read(watch, log, cursor)
    dense(log)
    assert end.state == STATE.STATE_SUCCEEDED and end.attempt == 2, end
    assert end.last_sequence == len(log) == cursor
    assert any(event.HasField("attempt_end") for event in log), "the lost attempt is in the log"


def an_acknowledged_submit_survives_a_kill(server):
    jobs = stub(server)
    ids = [submit(jobs, value={"seconds": 30}).job_id for _ in range(20)]
    server.restart_after_kill()
    jobs = stub(server)
    for job_id in ids:
        assert jobs.Get(api.GetRequest(job_id=job_id), timeout=10).job.job_id == job_id
        jobs.Cancel(api.CancelRequest(job_id=job_id), timeout=10)
    for job_id in ids:
        end = jobs.Wait(api.WaitRequest(job_id=job_id), timeout=35).job
        assert end.state == STATE.STATE_CANCELLED, end


def a_cancelled_job_ends_its_watch_with_ok(server):
    jobs = stub(server)
    job = submit(jobs, value={"seconds": 60})
    log = []
    watch = jobs.WatchJob(api.WatchJobRequest(job_id=job.job_id, after_sequence=0))
    for message in watch:
        log.extend(message.events.events)
        if any(event.HasField("progress") for event in log):
            break
    jobs.Cancel(api.CancelRequest(job_id=job.job_id, reason="enough"), timeout=10)
    _, end = read(watch, log, log[-1].sequence)
    dense(log)
    assert watch.code() == grpc.StatusCode.OK
    assert end.state == STATE.STATE_CANCELLED and end.cancel_reason == "enough"
    assert [event.cancel_requested.reason for event in log if event.HasField("cancel_requested")] == ["enough"]


def every_bad_field_comes_back_at_once_with_reasons(server):
    jobs = stub(server)
    request = api.SubmitRequest(type="slep", priority=5000, queue="a//b", idempotency_key="k" * 256)
    code, reason, details = refused(lambda: jobs.Submit(request, timeout=10))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    violations = {v.field: v.description for v in details["BadRequest"].field_violations}
    assert set(violations) == {"type", "priority", "queue", "idempotency_key"}, violations
    assert "255" in violations["idempotency_key"] and "sleep" in violations["type"]


def every_refusal_carries_its_reason(server):
    jobs = stub(server)
    unknown = "01987654-0000-7000-8000-000000000000"
    code, reason, details = refused(lambda: jobs.Get(api.GetRequest(job_id=unknown), timeout=10))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    assert details["ErrorInfo"].metadata["job_id"] == unknown
    code, reason, _ = refused(lambda: jobs.Submit(api.SubmitRequest(type="slep"), timeout=10))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TYPE")
    job = submit(jobs, value={"seconds": 0}, idempotency_key="once")
    code, reason, _ = refused(lambda: submit(jobs, value={"seconds": 1}, idempotency_key="once"))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    jobs.Wait(api.WaitRequest(job_id=job.job_id), timeout=35)
    ahead = api.WatchJobRequest(job_id=job.job_id, after_sequence=99)
    code, reason, details = refused(lambda: list(jobs.WatchJob(ahead, timeout=10)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_AHEAD")
    assert int(details["ErrorInfo"].metadata["last_sequence"]) > 0


def a_channel_with_gzip_works_for_every_service(server):
    jobs = stub(server, compression=grpc.Compression.Gzip)
    log = []
    job = submit(jobs, value={"seconds": 0.3})
    _, end = read(jobs.WatchJob(api.WatchJobRequest(job_id=job.job_id, after_sequence=0)), log, 0)
    dense(log)
    assert end.state == STATE.STATE_SUCCEEDED
    channel = grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip)
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "pacenote.v1.JobService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def reflection_v1alpha_answers(server):
    database = ProtoReflectionDescriptorDatabase(grpc.insecure_channel(server.address))
    assert "pacenote.v1.JobService" in database.get_services()
    assert database.FindFileContainingSymbol("pacenote.v1.WatchJobResponse").package == "pacenote.v1"


def the_deadline_of_a_watch_does_not_cancel_the_job(server):
    jobs = stub(server)
    job = submit(jobs, value={"seconds": 1.5})
    request = api.WatchJobRequest(job_id=job.job_id)
    try:
        list(jobs.WatchJob(request, timeout=0.4))
        raise AssertionError("the watch has outlived its deadline")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error.code()
    end = jobs.Wait(api.WaitRequest(job_id=job.job_id), timeout=35).job
    assert end.state == STATE.STATE_SUCCEEDED and end.attempt == 1


def leaving_a_run_does_not_cancel_the_job_and_its_key_leads_back(server):
    jobs = stub(server)
    request = api.RunRequest(
        submit=api.SubmitRequest(
            type="sleep", input=json_input({"seconds": 1.5}), idempotency_key="run-1"
        )
    )
    run = jobs.Run(request)
    first = next(run)
    assert not first.deduplicated and first.update.HasField("snapshot")
    job_id = first.update.snapshot.job_id
    run.cancel()
    again = list(jobs.Run(request, timeout=20))
    assert again[0].deduplicated and again[0].update.snapshot.job_id == job_id
    log = [event for message in again for event in message.update.events.events]
    dense(log)
    assert again[-1].update.snapshot.state == STATE.STATE_SUCCEEDED


CHECKS = [
    a_job_goes_from_submit_to_its_result,
    a_watch_that_is_cut_at_every_event_loses_nothing,
    a_watch_goes_on_after_the_server_was_killed_and_started_again,
    an_acknowledged_submit_survives_a_kill,
    a_cancelled_job_ends_its_watch_with_ok,
    every_bad_field_comes_back_at_once_with_reasons,
    every_refusal_carries_its_reason,
    a_channel_with_gzip_works_for_every_service,
    reflection_v1alpha_answers,
    the_deadline_of_a_watch_does_not_cancel_the_job,
    leaving_a_run_does_not_cancel_the_job_and_its_key_leads_back,
]


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder)
        try:
            for check in CHECKS:
                sentence = check.__name__.replace("_", " ")
                try:
                    check(server)
                    print(f"  ok    {sentence}", flush=True)
                except Exception as error:  # Every check is told of, also after one that failed.
                    failed += 1
                    print(f"  FAILED {sentence}: {type(error).__name__}: {error}", flush=True)
                    if server.process.poll() is not None:
                        server.start()
        finally:
            server.kill()
    print(f"{len(CHECKS) - failed} checks passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
