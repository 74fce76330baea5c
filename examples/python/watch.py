"""Submits a job and watches it to its end, however often the connection breaks."""

import random
import sys
import time
import uuid

import grpc
from google.protobuf.json_format import MessageToJson, ParseDict
from google.protobuf.struct_pb2 import Value

from pacenote.v1 import job_pb2, job_service_pb2 as api, job_service_pb2_grpc

RESUME = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


def watch(jobs, job_id, after=0):
    """Yields every message of a job's watch; each event once, in order."""
    pause = 0.1
    while True:
        request = api.WatchJobRequest(job_id=job_id, after_sequence=after)
        try:
            for message in jobs.WatchJob(request):
                pause = 0.1
                after = message.through_sequence
                yield message
            return  # OK: the job is over, and only then
        except grpc.RpcError as error:
            if error.code() not in RESUME:
                raise
        time.sleep(random.uniform(0.5, 1) * pause)
        pause = min(2 * pause, 30)


KEEPALIVE = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
channel = grpc.insecure_channel(sys.argv[1], KEEPALIVE)
jobs = job_service_pb2_grpc.JobServiceStub(channel)
payload = job_pb2.Payload(json=ParseDict({"seconds": 2}, Value()))
submit = api.SubmitRequest(type="sleep", input=payload, idempotency_key=str(uuid.uuid4()))
job = jobs.Submit(submit, timeout=10).job  # with the key, it may be sent again
for message in watch(jobs, job.job_id):
    for event in message.events.events:
        if event.HasField("progress"):
            print(f"{event.sequence:3} {event.progress.fraction:4.0%}", flush=True)
print(MessageToJson(message.snapshot.result.json, indent=None))
