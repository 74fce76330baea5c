"""Does jobs: leases them, runs a handler for each in a thread of its own, and tells how it goes.

It promises that what a handler tells is stored once and in order, however often the connection breaks, and that
nothing is told of a job that has gone to somebody else. It does not stop a thread: a handler has to look at
`Attempt.cancelled` and `Attempt.lost`. An attempt may run twice: the job id is the key for side effects.
"""

import logging
import math
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from pacenote.client import CALL_SECONDS, TRANSIENT, Backoff, call, from_payload, to_payload
from pacenote.v1 import worker_service_pb2 as api
from pacenote.v1.job_pb2 import Job, JobError, LogLine, OutputChunk, Payload, Progress
from pacenote.v1.worker_service_pb2_grpc import WorkerServiceStub

LOG = logging.getLogger(__name__)
LOST = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
# In characters, of at most 4 bytes each: a chunk may have 1 MiB. Chosen: what a watch sends at once.
CHUNK = 65_536
# How long one call waits for work: the server's own default.
WAIT_SECONDS = 30.0
# What a drain takes beyond its grace where the server does not answer. Chosen.
HAND_BACK_SECONDS = 5.0
# How long a drain waits for work that may be on its way. Chosen: where work waits, it comes in milliseconds.
ON_ITS_WAY_SECONDS = 0.5
HAND_BACK = api.FinishRequest(hand_back=api.HandBack())
CANCELLED = api.FinishRequest(cancelled=api.Cancelled())


class Fail(Exception):
    """Raised by a handler: the attempt has failed. `reason` is UPPER_SNAKE_CASE and stable.

    Where another attempt could help, it is `retryable`: after `delay` seconds, or the backoff of the job's policy.
    """

    def __init__(self, reason: str, message: str = "", retryable: bool = False, delay: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        error = JobError(reason=_text(reason), message=_text(message), retryable=retryable)
        retry_delay = None if delay is None else timedelta(seconds=delay)
        self.end = api.FinishRequest(error=error, retry_delay=retry_delay)


class Snooze(Exception):
    """Raised by a handler: the job goes on after `delay` seconds, in another attempt. Charges nothing."""

    def __init__(self, delay: float) -> None:
        super().__init__(f"for {delay} s")
        self.end = api.FinishRequest(snooze=api.Snooze(delay=timedelta(seconds=delay)))


class LeaseLost(Exception):
    """The job is not this worker's any more. Raised by what an attempt tells; a handler lets it pass."""


class Attempt:
    """What a handler gets. Whatever it tells returns once it was taken in, and waits for a server that is away, until
    the lease is lost."""

    def __init__(self, stub: WorkerServiceStub, leased: api.LeasedJob, term: float, draining: threading.Event) -> None:
        self.job: Job = leased.job
        self.cancelled = threading.Event()
        """Somebody asked the job to stop: end, however. Heard with every report and heartbeat."""
        self.cancel_reason = ""
        self.lost = threading.Event()
        """The lease is lost, may be over, or was given back: end. Nothing is told any more."""
        self.draining = draining
        """The worker stops: what does not end within its grace is handed back."""
        self.lease_token: str = leased.lease_token
        self.has_ended = False
        self.good_until = math.inf
        """By `time.monotonic`. Set once the attempt begins."""
        self._term = term
        self._stub, self._number, self._in_order = stub, 0, threading.Lock()

    @cached_property
    def input(self) -> Any:
        """As `from_payload` gives it."""
        return from_payload(self.job.input)

    @cached_property
    def last_checkpoint(self) -> Any:
        """The newest one of the attempts before; None where there is none."""
        return from_payload(self.job.checkpoint)

    def progress(self, fraction: float | None = None, **fields: Any) -> None:
        """How far it has come, 0 to 1; or any other fields of `Progress`: completed_units, total_units, unit, …"""
        self._tell(api.WorkerEvent(progress=Progress(fraction=fraction, **fields)))

    def output(self, text: str | bytes, stream: str = "stdout") -> None:
        """Partial output, of any length."""
        for start in range(0, len(text), CHUNK):
            part = text[start : start + CHUNK]
            chunk = Payload(text=part) if isinstance(part, str) else Payload(data=part)
            self._tell(api.WorkerEvent(output=OutputChunk(stream=stream, chunk=chunk)))

    def log(self, message: str, level: str = "INFO", **fields: Any) -> None:
        """A line for people. `level` is DEBUG, INFO, WARN or ERROR."""
        line = LogLine(level=f"LEVEL_{level}", message=message, fields=ParseDict(fields, Struct()))
        self._tell(api.WorkerEvent(log=line))

    def checkpoint(self, value: Any) -> None:
        """Where the next attempt could go on, as `to_payload` takes it; kept once this returns."""
        self._tell(checkpoint=to_payload(value))

    def hear(self, standing: api.ReportResponse | api.LeaseStatus, sent: float) -> None:
        """Takes note of how the lease stands, by the answer to what was sent then."""
        self.good_until = max(self.good_until, sent + self._term)
        if standing.cancel_requested:
            self.cancel_reason = standing.cancel_reason
            self.cancelled.set()

    def _tell(self, *events: api.WorkerEvent, checkpoint: Payload | None = None) -> None:
        # One at a time: a number that comes after a higher one is taken for one that came before.
        with self._in_order:
            self._number += 1
            request = api.ReportRequest(
                lease_token=self.lease_token, events=events, report_number=self._number, checkpoint=checkpoint
            )
            sent = time.monotonic()
            try:
                if not self.lost.is_set():
                    return self.hear(call(self._stub.Report, request, stop=self.lost), sent)
            except grpc.RpcError as error:
                if error.code() in LOST:
                    self.lost.set()
                if not self.lost.is_set():
                    raise
            raise LeaseLost(self.job.job_id)


class Worker:
    """Leases jobs of the types of `handlers`, `concurrency` at once, until it is drained.

    A handler's value is the job's result, in JSON. It ends otherwise with `Fail` or `Snooze`; any other
    exception is an error with reason HANDLER_ERROR that may be tried again. Where somebody asked the job to stop,
    it is cancelled, however the handler ends.

    `worker_id` is best unique for a process, as the default is. `lease` (seconds, 5 to 300) is how long a job
    stays with a worker that fell silent; a heartbeat goes out after a third of it. Where none is answered, the
    attempt is `lost` by the worker's own clock, a fifth of the lease, and at most 2 s, before it is over.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        handlers: Mapping[str, Callable[[Attempt], Any]],
        worker_id: str = "",
        queues: Sequence[str] = (),
        concurrency: int = 1,
        lease: float = 15.0,
    ) -> None:
        if not 1 <= concurrency <= 1_000:
            raise ValueError(f"concurrency is {concurrency}; 1 to 1000 is accepted")
        self.draining = threading.Event()
        self._stub, self._handlers = WorkerServiceStub(channel), dict(handlers)
        self._request = api.LeaseRequest(
            worker_id=worker_id or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            types=self._handlers,
            queues=queues,
            lease=timedelta(seconds=lease),
            wait=timedelta(seconds=WAIT_SECONDS),
        )
        self._concurrency, self._beat, self._term = concurrency, lease / 3, lease - min(2.0, lease / 5)
        self._changed = threading.Condition()
        self._running: set[Attempt] = set()
        self._poll: grpc.Future | None = None
        self._closed = threading.Event()

    def run(self) -> None:
        """Works until `drain` is done. Raises `grpc.RpcError` where the server refuses to give work for good."""
        _start(self._keep_leases)
        _start(self._stop_in_time)
        backoff = Backoff()
        try:
            while not self.draining.is_set():
                try:
                    answer = self._lease()
                except grpc.FutureCancelledError:  # By a drain.
                    continue
                except grpc.RpcError as error:
                    if error.code() not in TRANSIENT:
                        raise
                    LOG.warning("the server gives no work: %s", error.details())
                    self.draining.wait(backoff.pause(error))
                    continue
                if answer.drain:  # The server's, not ours: it says so at once, as long as it is there.
                    self.draining.wait(backoff.pause())
                else:
                    backoff.reset()
        finally:
            if not self.draining.is_set():
                self.drain()
            self._closed.wait()

    def drain(self, grace: float = 20.0) -> None:
        """Leases no more, waits up to `grace` seconds for what runs, and hands back what has not ended then.

        From a signal's handler, call it in a thread: `threading.Thread(target=worker.drain).start()`.
        """

        def is_idle() -> bool:
            return self._poll is None and not self._running

        with self._changed:
            self.draining.set()
            self._changed.notify_all()
            # An answer that a cancel crosses on its way is heard by nobody: its jobs would be held, and charged,
            # until their leases end. What comes in time is handed back.
            self._changed.wait_for(lambda: self._poll is None, ON_ITS_WAY_SECONDS)
            if self._poll:
                self._poll.cancel()
            self._changed.wait_for(is_idle, grace)
            for attempt in self._running:
                _start(self._end, attempt, HAND_BACK)
            self._changed.wait_for(is_idle, HAND_BACK_SECONDS)
            self._closed.set()
            self._changed.notify_all()

    def _lease(self) -> api.LeaseResponse:
        """Asks for jobs once there is room, and begins those that come."""
        with self._changed:
            self._changed.wait_for(lambda: self.draining.is_set() or len(self._running) < self._concurrency)
            if self.draining.is_set():
                return api.LeaseResponse()
            self._request.max_jobs = self._concurrency - len(self._running)
            sent = time.monotonic()
            self._poll = self._stub.Lease.future(self._request, timeout=WAIT_SECONDS + CALL_SECONDS)
        answer = api.LeaseResponse()
        try:
            answer = self._poll.result()
            return answer
        finally:
            self._poll.cancel()  # Where somebody has interrupted us.
            # The leases began no earlier, by our own clock.
            good_until = sent + answer.waited.ToTimedelta().total_seconds() + self._term
            attempts = [Attempt(self._stub, leased, self._term, self.draining) for leased in answer.leased_jobs]
            # In one step: a drain that finds no call under way finds all that came of it.
            with self._changed:
                self._poll = None
                self._running.update(attempts)
                self._changed.notify_all()
            for attempt in attempts:
                _start(self._work, attempt, good_until)

    def _work(self, attempt: Attempt, good_until: float) -> None:
        with self._changed:
            # Not what came in the moment in which the drain began, or so late that it may be another's by now.
            if begins := not self.draining.is_set() and time.monotonic() < good_until:
                attempt.good_until = good_until
                self._changed.notify_all()
        if not begins:
            return self._end(attempt, HAND_BACK)
        end = _outcome(self._handlers[attempt.job.type], attempt)
        self._end(attempt, CANCELLED if attempt.cancelled.is_set() else end)

    def _end(self, attempt: Attempt, end: api.FinishRequest) -> None:
        """Tells the end of an attempt, the first one that comes. It goes on being renewed until that is answered."""
        with self._changed:
            if attempt.has_ended:
                return
            attempt.has_ended = True
            is_lost = attempt.lost.is_set()
            attempt.lost.set()  # Threads that the handler left behind have nothing to tell any more.
        try:
            if not is_lost:
                self._finish(attempt, end)
        except grpc.RpcError as error:
            LOG.warning("the end of job %s was not taken in: %s", attempt.job.job_id, error.details())
        finally:
            with self._changed:
                self._running.discard(attempt)
                self._changed.notify_all()

    def _finish(self, attempt: Attempt, end: api.FinishRequest) -> None:
        named = api.FinishRequest(lease_token=attempt.lease_token)
        named.MergeFrom(end)
        try:
            call(self._stub.Finish, named, stop=self._closed)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                raise
            # A result that is too large, a reason that is none: said as an error, so that the job does not hang.
            reason = "RESULT_INVALID" if end.HasField("result") else "HANDLER_ERROR"
            refused = Fail(reason, error.details() or "").end
            refused.lease_token = attempt.lease_token
            call(self._stub.Finish, refused, stop=self._closed)

    def _stop_in_time(self) -> None:
        """Stops the attempts whose leases may be over, by our own clock: it does not matter who answers."""
        with self._changed:
            while not self._closed.is_set():
                now, next_end = time.monotonic(), math.inf
                for attempt in self._running:
                    if attempt.good_until <= now:
                        attempt.lost.set()
                    elif not attempt.lost.is_set():
                        next_end = min(next_end, attempt.good_until)
                self._changed.wait(min(next_end - now, threading.TIMEOUT_MAX))

    def _keep_leases(self) -> None:
        """Renews all leases at once, and hears which are lost and which jobs are to stop."""
        backoff, pause = Backoff(), self._beat
        while not self._closed.wait(pause):
            pause = self._beat
            with self._changed:
                # Not those that are lost while they run, lest we keep the jobs from others.
                attempts = [attempt for attempt in self._running if attempt.has_ended or not attempt.lost.is_set()]
            try:
                self._renew(attempts)
                backoff.reset()
            except grpc.RpcError as error:
                pause = min(pause, backoff.pause(error))

    def _renew(self, attempts: list[Attempt]) -> None:
        """Raises `grpc.RpcError` where that may heal."""
        if not attempts:
            return
        request = api.ExtendLeasesRequest(lease_tokens=[attempt.lease_token for attempt in attempts])
        sent = time.monotonic()
        try:
            # Short, so that there is time for a second try before the attempts have to stop.
            answer = self._stub.ExtendLeases(request, timeout=min(CALL_SECONDS, self._beat / 2))
        except grpc.RpcError as error:
            if error.code() in TRANSIENT:
                raise
            # One token that the server does not know, as after its store was replaced, must not take the others along.
            if len(attempts) == 1:
                attempts[0].lost.set()
            else:
                self._renew(attempts[::2])
                self._renew(attempts[1::2])
            return
        for attempt, standing in zip(attempts, answer.leases):
            if standing.lost:
                attempt.lost.set()
            elif standing.HasField("lease_expire_time"):  # Without one, the server cannot say how it stands.
                attempt.hear(standing, sent)


def _start(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _outcome(handler: Callable[[Attempt], Any], attempt: Attempt) -> api.FinishRequest:
    """Runs the handler, and says how it ended."""
    try:
        value = handler(attempt)
    except (Fail, Snooze) as told:
        return told.end
    except BaseException as error:  # SystemExit as well: it would end this thread alone, and say nothing.
        message = traceback.format_exception_only(error)[-1].strip()
        end = Fail("HANDLER_ERROR", message, retryable=True).end
        # The end of a traceback is what tells; the server would keep its beginning. 16 KiB is its bound.
        end.error.detail = _text(traceback.format_exc(), -16_384)
        return end
    try:
        return api.FinishRequest(result=to_payload(value))
    except Exception as error:
        return Fail("RESULT_INVALID", f"the result is no JSON: {error}").end


def _text(text: object, start: int = 0) -> str:
    """What a message takes as a string, whatever a handler gave."""
    return str(text).encode(errors="replace")[start:].decode(errors="ignore")
