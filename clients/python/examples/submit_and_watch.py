"""Submits a job for worker.py and watches it to its end: `python submit_and_watch.py [HOST:PORT]`."""

import sys

from pacenote import connect, from_payload, submit, watch
from pacenote.v1.job_pb2 import Job
from pacenote.v1.job_service_pb2_grpc import JobServiceStub

jobs = JobServiceStub(connect(*sys.argv[1:]))
job = submit(jobs, "greet", {"names": ["Ada", "Grace", "Edsger"]}).job
for message in watch(jobs, job.job_id):
    for event in message.events.events:
        if event.HasField("output"):
            print(event.output.chunk.text, end="", flush=True)
        elif event.HasField("progress"):
            print(f"{event.progress.fraction:4.0%}", flush=True)
end = message.snapshot
print(Job.State.Name(end.state), from_payload(end.result))
