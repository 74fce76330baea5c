"""Submits jobs and watches them, over however many broken connections.

It promises that a submit makes one job, and that a watch shows each event once, in order, to the end. It does
not wrap the rest of the API: the generated stubs in `pacenote.v1` are good as they are.
"""

import json
import math
import random
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.json_format import MessageToJson, ParseDict
from google.protobuf.struct_pb2 import Value
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from pacenote.v1.job_pb2 import Payload
from pacenote.v1.job_service_pb2 import SubmitRequest, SubmitResponse, WatchJobRequest, WatchJobResponse
from pacenote.v1.job_service_pb2_grpc import JobServiceStub

# What may heal, by the table in docs/protocol.md. All else stays as it is however often one asks.
TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}

CALL_SECONDS = 10.0
"""Deadline of one unary call: without one, it waits for a dead network for ever."""

CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    # The channel has a backoff of its own, of 1 s to 2 min: it must not be the longer one.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]
"""What docs/protocol.md asks of a client."""


def connect(address: str = "127.0.0.1:7430") -> grpc.Channel:
    """A channel to a server, with keepalive. It connects with the first call."""
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)


def submit(
    jobs: JobServiceStub, job_type: str, value: Any = None, *, deadline: float = 60.0, **fields: Any
) -> SubmitResponse:
    """Makes one job, and is sent again until it is answered or `deadline` seconds are over.

    `value` is the input, as `to_payload` takes it; `fields` are those of `SubmitRequest`. Without an
    `idempotency_key` it gets one of its own; give it yours, and the submit may be repeated by another process.
    """
    fields = {"idempotency_key": str(uuid.uuid4()), **fields}
    if value is not None:
        fields["input"] = to_payload(value)
    return call(jobs.Submit, SubmitRequest(type=job_type, **fields), deadline=deadline)


def watch(
    jobs: JobServiceStub, job_id: str, *, after: int | None = 0, heartbeat: float = 15.0, **fields: Any
) -> Iterator[WatchJobResponse]:
    """Yields every message of a job's watch until the job is over; the last one is the snapshot with the result.

    `after` is the `through_sequence` to go on from: 0 for all that is kept, None for a snapshot and what comes
    after it. Store `through_sequence` with what you made of a message, and a crash of yours loses nothing
    either. `fields` are those of `WatchJobRequest`. Raises `grpc.RpcError` where asking again does not help.
    """
    interval = timedelta(seconds=heartbeat)
    request = WatchJobRequest(job_id=job_id, after_sequence=after, heartbeat_interval=interval, **fields)
    backoff = Backoff()
    while True:
        stream = jobs.WatchJob(request)
        try:
            while (message := _next(stream, 3 * heartbeat)) is not None:
                backoff.reset()
                request.after_sequence = message.through_sequence
                yield message
                # A job that is over may also be shown after a gap, with more of its log to follow.
                job = message.snapshot
                if job.HasField("end_time") and job.last_sequence <= message.through_sequence:
                    return
            pause = backoff.pause()  # An OK before the job's end is not the server's.
        except grpc.RpcError as error:
            if error.code() not in TRANSIENT:
                raise
            pause = backoff.pause(error)
        finally:
            stream.cancel()
        time.sleep(pause)


def call(method: Any, request: Any, *, deadline: float = math.inf, stop: threading.Event | None = None) -> Any:
    """Makes a call that may be repeated until it is answered. Raises the last `grpc.RpcError` where that cannot
    heal, where the next try would be past `deadline` (seconds), or once `stop` is set."""
    backoff, end = Backoff(), time.monotonic() + deadline
    stop = stop or threading.Event()
    while True:
        try:
            return method(request, timeout=min(CALL_SECONDS, end - time.monotonic()))
        except grpc.RpcError as error:
            pause = backoff.pause(error)
            if error.code() not in TRANSIENT or time.monotonic() + pause >= end or stop.wait(pause):
                raise


class Backoff:
    """Waits between tries: uniform in 0 to 0.1 s, doubling to 30 s, and never less than the server asks for."""

    SHORTEST, LONGEST = 0.1, 30.0

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins again with the shortest wait."""
        self._ceiling = self.SHORTEST

    def pause(self, error: grpc.RpcError | None = None) -> float:
        """Seconds to wait now."""
        ceiling, self._ceiling = self._ceiling, min(2 * self._ceiling, self.LONGEST)
        return _retry_delay(error) + random.uniform(0, ceiling)


def to_payload(value: Any) -> Payload:
    """A JSON value; bytes as they are; None for no payload. A `Payload` stays as it is.

    Raises TypeError, ValueError or ParseError for what is not JSON, and for integers beyond 2^53, which would
    lose digits.
    """
    if isinstance(value, Payload):
        return value
    if isinstance(value, bytes):
        return Payload(data=value)
    if value is None:
        return Payload()
    plain = json.loads(json.dumps(value, allow_nan=False), parse_int=_exact)
    return Payload(json=ParseDict(plain, Value()))


def from_payload(payload: Payload) -> Any:
    """The JSON value, text or bytes; None where there is none. Integral numbers are ints."""
    kind = payload.WhichOneof("content")
    if kind == "json":
        return json.loads(MessageToJson(payload.json), parse_float=_number)
    return getattr(payload, kind) if kind else None


def _retry_delay(error: grpc.RpcError | None) -> float:
    try:
        status = rpc_status.from_call(error) if error else None
    except ValueError:  # Details that are not of this status: a proxy's work.
        status = None
    for detail in status.details if status else ():
        info = RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return 0.0


def _exact(digits: str) -> int:
    if abs(int(digits)) > 2**53:
        raise ValueError(f"{digits} is beyond 2^53; write it as a string")
    return int(digits)


def _number(digits: str) -> int | float:
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _next(stream: grpc.Call, silence: float) -> WatchJobResponse | None:
    """The next message, or None at the end. Cancels a stream that says nothing for so many seconds."""
    timer = threading.Timer(silence, stream.cancel)
    timer.daemon = True
    timer.start()
    try:
        return next(stream, None)
    finally:
        timer.cancel()
