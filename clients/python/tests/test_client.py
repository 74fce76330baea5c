"""The client and the worker against a real server, whose binary is $PACENOTE.

Every test has a server of its own, on a free port and a new store. They wait for what happens, with a deadline.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARY = os.environ.get("PACENOTE", "")
try:
    import grpc
    from google.rpc.error_details_pb2 import ErrorInfo
    from grpc_status import rpc_status

    import pacenote
    from pacenote import Attempt, Fail, LeaseLost, Snooze, Worker, from_payload, submit, watch
    from pacenote.v1 import worker_service_pb2 as work
    from pacenote.v1.job_pb2 import Job, JobEvent, Payload
    from pacenote.v1.job_service_pb2 import (
        BatchSubmitRequest,
        CancelRequest,
        GetRequest,
        ListRequest,
        SubmitRequest,
        WatchJobResponse,
    )
    from pacenote.v1.job_service_pb2_grpc import JobServiceStub
    from pacenote.v1.worker_service_pb2_grpc import WorkerServiceStub

    MISSING = "" if os.access(BINARY, os.X_OK) else f"PACENOTE={BINARY!r} is no program"
except ImportError as error:
    MISSING = str(error)
if MISSING and os.environ.get("CI") == "true":
    raise RuntimeError(f"nothing can be checked: {MISSING}")
if MISSING:
    pytest.skip(f"NOTHING WAS CHECKED: {MISSING}", allow_module_level=True)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SECONDS = 20.0
"""How long anything may take that a test waits for."""


class Server:
    """A server that can be killed, and started again on the same port and store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PACENOTE")}
        path = self.folder / "server.log"
        with open(path, "w") as log:
            command = [os.path.abspath(BINARY), "serve", "--listen", self.address]
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stderr=log)

        def address() -> str | None:
            assert self.process.poll() is None, path.read_text()
            found = re.search(r"^listening on (\S+)$", path.read_text(), re.M)
            return found and found.group(1)

        self.address = eventually(address)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def channel(self) -> grpc.Channel:
        return pacenote.connect(self.address)

    def jobs(self) -> JobServiceStub:
        return JobServiceStub(self.channel())


def eventually(look: Callable):
    """What `look` answers, once it is anything."""
    end = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def happens(event: threading.Event) -> None:
    assert event.wait(SECONDS), "it did not happen in time"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@contextmanager
def working(server: Server, handler: Callable, *, channel: grpc.Channel | None = None, **options) -> Iterator[Worker]:
    """A worker for the type `work`, once it is known to the server."""
    options = {"lease": 5.0, **options}
    worker = Worker(channel or server.channel(), handlers={"work": handler}, **options)
    if not is_known(server, "work"):
        make_known(server)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    yield worker
    worker.drain(0)
    thread.join(SECONDS)
    assert not thread.is_alive(), "run has returned"


def make_known(server: Server) -> None:
    """From here on jobs of the type `work` may be submitted."""
    assert not lease(server, "the first one", wait=0).leased_jobs


def is_known(server: Server, job_type: str) -> bool:
    try:
        return bool(server.jobs().Submit(SubmitRequest(type=job_type, validate_only=True), timeout=10))
    except grpc.RpcError:
        return False


def lease(server: Server, worker_id: str, wait: int = 20) -> work.LeaseResponse:
    request = work.LeaseRequest(worker_id=worker_id, types=["work"], lease={"seconds": 5}, wait={"seconds": wait})
    return WorkerServiceStub(server.channel()).Lease(request, timeout=wait + 10)


def get(jobs: JobServiceStub, job_id: str) -> Job:
    return jobs.Get(GetRequest(job_id=job_id), timeout=10).job


def gathered(messages: Iterator[WatchJobResponse]) -> tuple[list[JobEvent], Job]:
    """All events of a watch from the beginning, without a hole or a double, and the job at its end."""
    events: list[JobEvent] = []
    for message in messages:
        events.extend(message.events.events)
    sequences = [event.sequence for event in events]
    assert sequences == list(range(1, len(events) + 1))
    end = message.snapshot
    assert end.HasField("end_time") and end.last_sequence == len(events)
    return events, end


def outputs(events: list[JobEvent], stream: str = "stdout") -> str:
    chunks = [event.output for event in events if event.HasField("output") and event.output.stream == stream]
    assert [chunk.offset for chunk in chunks] == [
        sum(len(before.chunk.text.encode()) for before in chunks[:index]) for index in range(len(chunks))
    ]
    return "".join(chunk.chunk.text for chunk in chunks)


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    info = ErrorInfo()
    details = rpc_status.from_call(error).details
    assert any(detail.Unpack(info) for detail in details)
    return error.code(), info.reason


class ConnectionBroke(grpc.RpcError):
    """What a caller sees where the request or its answer was lost."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "the connection broke"

    def trailing_metadata(self) -> None:
        return None


class Breaks:
    """Watches whose streams end otherwise: `end` gets the number of the stream, how many messages it has given and
    its next one (None at its end), and raises how it is to end instead."""

    def __init__(self, jobs: JobServiceStub, end: Callable[[int, int, WatchJobResponse | None], None]) -> None:
        self.jobs, self.end, self.streams = jobs, end, 0

    def WatchJob(self, request):
        self.streams += 1
        return BrokenStream(self.jobs.WatchJob(request), self.end, self.streams)


class BrokenStream:
    def __init__(self, stream: grpc.Call, end: Callable, number: int) -> None:
        self.stream, self.end, self.number, self.count = stream, end, number, 0

    def __next__(self) -> WatchJobResponse:
        message = next(self.stream, None)
        self.end(self.number, self.count, message)
        self.count += 1
        if message is None:
            raise StopIteration
        return message

    def cancel(self) -> None:
        self.stream.cancel()


class Around(grpc.UnaryUnaryClientInterceptor):
    """Calls `before` and `after` around each call of a method, with its request and with its answer. What they raise
    is how it ends."""

    def __init__(self, method: str, before: Callable = lambda request: None, after: Callable = lambda answer: None):
        self.method, self.before, self.after = method, before, after

    def intercept_unary_unary(self, continuation, details, request):
        if not details.method.endswith(f"/{self.method}"):
            return continuation(details, request)
        self.before(request)
        return Answer(continuation(details, request), self.after)


class Answer:
    def __init__(self, call: grpc.Future, after: Callable) -> None:
        self.call, self.after = call, after

    def result(self, timeout: float | None = None):
        answer = self.call.result(timeout)
        self.after(answer)
        return answer

    def __getattr__(self, name: str):
        return getattr(self.call, name)


class Loses(grpc.UnaryUnaryClientInterceptor):
    """Loses each different request of some methods once, or else the first answer to it."""

    def __init__(self, *methods: str, requests: bool = False) -> None:
        self.methods, self.requests, self.lost = methods, requests, []

    def intercept_unary_unary(self, continuation, details, request):
        seen = (details.method.rpartition("/")[2], request.SerializeToString(deterministic=True))
        if seen[0] not in self.methods or seen in self.lost:
            return continuation(details, request)
        if not self.requests:
            continuation(details, request).result()
        self.lost.append(seen)
        raise ConnectionBroke()


def test_a_job_is_watched_from_its_submit_to_its_result(server: Server) -> None:
    jobs = server.jobs()
    job = submit(jobs, "sleep", {"seconds": 0.5}).job
    events, end = gathered(watch(jobs, job.job_id))
    assert end.state == Job.STATE_SUCCEEDED and from_payload(end.result) == {"slept_seconds": 0.5}
    fractions = [event.progress.fraction for event in events if event.HasField("progress")]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    # With a snapshot first, and of a job that is over.
    (only,) = watch(jobs, job.job_id, after=None)
    assert only.snapshot == end


def test_a_watch_goes_on_after_the_server_was_killed_and_started_again(server: Server) -> None:
    jobs = server.jobs()
    job = submit(jobs, "sleep", {"seconds": 2}).job

    def cut() -> Iterator[WatchJobResponse]:
        seen, restarted = 0, False
        for message in watch(jobs, job.job_id):
            yield message
            seen += len(message.events.events)
            if seen >= 5 and not restarted:
                restarted = True
                server.kill()
                server.start()
        assert restarted

    events, end = gathered(cut())
    assert end.state == Job.STATE_SUCCEEDED and end.attempt == 2
    assert [event.attempt_end.error.reason for event in events if event.HasField("attempt_end")] == ["WORKER_LOST"]


def test_a_watch_that_is_closed_and_begun_anew_at_every_message_loses_nothing(server: Server) -> None:
    jobs = server.jobs()
    job = submit(jobs, "sleep", {"seconds": 1}).job
    after, cuts = 0, 0

    def cut() -> Iterator[WatchJobResponse]:
        nonlocal after, cuts
        while True:
            messages = watch(jobs, job.job_id, after=after)
            message = next(messages)
            messages.close()
            after, cuts = message.through_sequence, cuts + 1
            yield message
            if message.HasField("snapshot"):
                return

    _, end = gathered(cut())
    assert end.state == Job.STATE_SUCCEEDED and cuts > 5


def test_a_watch_resumes_however_its_stream_breaks(server: Server) -> None:
    """Also with an OK that comes before the job is over: a proxy's."""
    causes = [StopIteration(), *map(ConnectionBroke, pacenote.client.TRANSIENT)]

    def end(stream: int, count: int, message: WatchJobResponse | None) -> None:
        if count == stream % 3:  # This one had arrived, and is lost.
            raise causes[stream % len(causes)]

    job = submit(server.jobs(), "sleep", {"seconds": 1.5}).job
    breaks = Breaks(server.jobs(), end)
    _, job = gathered(watch(breaks, job.job_id))
    assert job.state == Job.STATE_SUCCEEDED and breaks.streams >= len(causes)


def test_a_watch_that_breaks_between_its_last_snapshot_and_ok_shows_that_once(server: Server) -> None:
    def end(stream: int, count: int, message: WatchJobResponse | None) -> None:
        if message is None:
            raise ConnectionBroke()

    job = submit(server.jobs(), "sleep", {"seconds": 0}).job
    messages = list(watch(Breaks(server.jobs(), end), job.job_id))
    assert [message.HasField("snapshot") for message in messages].count(True) == 1
    assert gathered(iter(messages))[1].state == Job.STATE_SUCCEEDED


def test_a_watch_of_a_job_that_is_over_goes_on_after_a_gap() -> None:
    job = Job(end_time={"seconds": 1}, last_sequence=9)
    told = [
        WatchJobResponse(through_sequence=4, gap={"first_missing_sequence": 1, "last_missing_sequence": 4}),
        WatchJobResponse(through_sequence=4, snapshot=job),
        WatchJobResponse(through_sequence=9, events={"events": [JobEvent(sequence=9)]}),
        WatchJobResponse(through_sequence=9, snapshot=job),
    ]

    class Stream:
        def __init__(self) -> None:
            self.messages = iter(told)

        def __next__(self) -> WatchJobResponse:
            return next(self.messages)

        def cancel(self) -> None:
            pass

    class Jobs:
        def WatchJob(self, request):
            return Stream()

    assert list(watch(Jobs(), "id")) == told


def test_a_watch_takes_a_stream_that_is_silent_for_dead(server: Server) -> None:
    """A stopped server says nothing and closes nothing; the watch asks again, and loses nothing."""
    jobs = server.jobs()
    make_known(server)
    job = submit(jobs, "work").job
    streams: list[grpc.Call] = []

    class Counted:
        def WatchJob(self, request):
            streams.append(jobs.WatchJob(request))
            return streams[-1]

    messages = watch(Counted(), job.job_id, heartbeat=1.0)
    first = next(messages)
    server.process.send_signal(signal.SIGSTOP)
    try:
        rest: queue.Queue = queue.Queue()
        threading.Thread(target=lambda: rest.put(list(messages)), daemon=True).start()
        eventually(lambda: len(streams) > 1)
        assert streams[0].code() == grpc.StatusCode.CANCELLED
    finally:
        server.process.send_signal(signal.SIGCONT)
    jobs.Cancel(CancelRequest(job_id=job.job_id), timeout=10)
    _, end = gathered(iter([first, *rest.get(timeout=SECONDS)]))
    assert end.state == Job.STATE_CANCELLED


def test_a_watch_that_is_read_slowly_is_not_silent(server: Server) -> None:
    make_known(server)
    jobs = server.jobs()
    job = submit(jobs, "work").job
    breaks = Breaks(jobs, lambda *_: None)
    messages = watch(breaks, job.job_id, heartbeat=1.0)
    first = next(messages)
    time.sleep(3.5)  # More than three heartbeats: here it is the time itself that counts.
    jobs.Cancel(CancelRequest(job_id=job.job_id), timeout=10)
    gathered(iter([first, *messages]))
    assert breaks.streams == 1


def test_a_watch_stops_where_asking_again_does_not_help(server: Server) -> None:
    jobs = server.jobs()
    with pytest.raises(grpc.RpcError) as error:
        list(watch(jobs, "01987654-0000-7000-8000-000000000000"))
    assert refusal(error.value) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    job = submit(jobs, "sleep", {"seconds": 0}).job
    with pytest.raises(grpc.RpcError) as error:
        list(watch(jobs, job.job_id, after=99))
    assert refusal(error.value) == (grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_AHEAD")


def test_a_key_that_is_used_twice_leads_to_the_same_job(server: Server) -> None:
    jobs = server.jobs()
    first = submit(jobs, "sleep", {"seconds": 0}, idempotency_key="once")
    again = submit(jobs, "sleep", {"seconds": 0}, idempotency_key="once")
    assert (first.deduplicated, again.deduplicated) == (False, True)
    assert first.job.job_id == again.job.job_id
    with pytest.raises(grpc.RpcError) as error:
        submit(jobs, "sleep", {"seconds": 1}, idempotency_key="once")
    assert refusal(error.value) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")


def test_a_submit_whose_answer_was_lost_makes_one_job(server: Server) -> None:
    loses = Loses("Submit")
    jobs = JobServiceStub(grpc.intercept_channel(server.channel(), loses))
    assert submit(jobs, "sleep", {"seconds": 0}).deduplicated
    assert len(loses.lost) == 1


def test_a_submit_waits_for_a_server_that_is_away_and_not_for_ever(server: Server) -> None:
    jobs = server.jobs()
    server.kill()
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as error:
        submit(jobs, "sleep", deadline=1.0)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() - began < 2
    later = threading.Timer(0.5, server.start)
    later.start()
    assert submit(jobs, "sleep", {"seconds": 0}).job.job_id
    later.join()


def test_all_that_a_worker_tells_is_seen_in_the_watch(server: Server) -> None:
    def handler(attempt: Attempt):
        assert attempt.input == {"rows": 4, "name": "Ada"} and type(attempt.input["rows"]) is int
        attempt.log("begins", level="WARN", of=attempt.input["name"])
        attempt.progress(completed_units=1, total_units=4, unit="rows", phase="read")
        attempt.output("one ")
        attempt.output("zwölf")
        attempt.output("other", stream="tokens")
        attempt.checkpoint({"row": 1})
        attempt.progress(0.75)
        return {"rows": 4, "text": "fertig", "half": 0.5}

    with working(server, handler, worker_id="worker-1"):
        jobs = server.jobs()
        job = submit(jobs, "work", {"rows": 4, "name": "Ada"}, labels={"of": "test"}).job
        events, end = gathered(watch(jobs, job.job_id))
    assert (end.state, end.worker_id, dict(end.labels)) == (Job.STATE_SUCCEEDED, "worker-1", {"of": "test"})
    assert from_payload(end.result) == {"rows": 4, "text": "fertig", "half": 0.5}
    assert from_payload(end.checkpoint) == {"row": 1}
    assert (outputs(events), outputs(events, "tokens")) == ("one zwölf", "other")
    (line,) = [event.log for event in events if event.HasField("log")]
    assert (line.message, line.level, dict(line.fields)) == ("begins", line.LEVEL_WARN, {"of": "Ada"})
    fractions = [event.progress.fraction for event in events if event.HasField("progress")]
    assert fractions[-1] == 0.75 and end.progress.fraction == 0.75


@pytest.mark.parametrize("requests", [False, True], ids=["answers", "requests"])
def test_what_is_sent_again_because_the_connection_broke_is_stored_once(server: Server, requests: bool) -> None:
    def handler(attempt: Attempt):
        for number in range(4):
            attempt.output(f"{number} ")
        return "done"

    loses = Loses("Report", "Finish", requests=requests)
    with working(server, handler, channel=grpc.intercept_channel(server.channel(), loses)):
        jobs = server.jobs()
        job = submit(jobs, "work").job
        events, end = gathered(watch(jobs, job.job_id))
    assert (outputs(events), from_payload(end.result), end.attempt) == ("0 1 2 3 ", "done", 1)
    assert [method for method, _ in loses.lost] == ["Report"] * 4 + ["Finish"]


def test_an_output_larger_than_a_chunk_arrives_whole(server: Server) -> None:
    text = "äöü€😀" * 100_000

    def handler(attempt: Attempt) -> None:
        attempt.output(text)

    with working(server, handler):
        jobs = server.jobs()
        events, end = gathered(watch(jobs, submit(jobs, "work").job.job_id))
    assert outputs(events) == text and not end.HasField("result")


def test_a_worker_outlives_a_restart_of_its_server(server: Server) -> None:
    told, go_on = threading.Event(), threading.Event()

    def handler(attempt: Attempt):
        for number in range(10):
            attempt.output(f"{number} ")
            if number == 4:
                told.set()
                happens(go_on)
        return attempt.job.attempt

    with working(server, handler):
        jobs = server.jobs()
        job = submit(jobs, "work").job
        messages: queue.Queue = queue.Queue()
        threading.Thread(target=lambda: messages.put(list(watch(jobs, job.job_id))), daemon=True).start()
        happens(told)
        server.kill()
        go_on.set()  # It tells more while the server is away.
        server.start()
        events, end = gathered(iter(messages.get(timeout=SECONDS)))
        assert (outputs(events), from_payload(end.result)) == ("0 1 2 3 4 5 6 7 8 9 ", 1)
        # And it goes on leasing.
        _, end = gathered(watch(jobs, submit(jobs, "work").job.job_id))
        assert end.state == Job.STATE_SUCCEEDED


def test_a_heartbeat_keeps_a_lease_and_brings_a_cancel(server: Server) -> None:
    begun = threading.Event()
    reasons = []

    def handler(attempt: Attempt):
        begun.set()
        happens(attempt.cancelled)  # It tells nothing meanwhile.
        reasons.append(attempt.cancel_reason)
        return "too late"

    heartbeats = []
    counts = Around("ExtendLeases", after=heartbeats.append)
    with working(server, handler, channel=grpc.intercept_channel(server.channel(), counts)):
        jobs = server.jobs()
        job = submit(jobs, "work").job
        happens(begun)
        eventually(lambda: len(heartbeats) == 5)  # Of 5/3 s each: the lease of 5 s would be over.
        running = get(jobs, job.job_id)
        assert (running.state, running.attempt) == (Job.STATE_RUNNING, 1)
        jobs.Cancel(CancelRequest(job_id=job.job_id, reason="enough"), timeout=10)
        _, end = gathered(watch(jobs, job.job_id))
    assert (end.state, end.attempt, reasons) == (Job.STATE_CANCELLED, 1, ["enough"])


def test_a_worker_that_is_cut_off_stops_before_another_one_has_its_job(server: Server) -> None:
    """Nobody answers its heartbeats: it stops by its own clock. The handler does not heed that at once, and what it
    tells afterwards stays untold."""
    is_stopped, taken = threading.Event(), threading.Event()
    stops, begins, told = [], [], []

    def cut_off(request: work.ExtendLeasesRequest) -> None:
        if not is_stopped.is_set():
            raise ConnectionBroke()

    def handler(attempt: Attempt):
        begins.append(time.monotonic())
        happens(attempt.lost)
        stops.append(time.monotonic())
        is_stopped.set()  # The heartbeats are answered from here on; this lease is not to be renewed.
        happens(taken)
        try:
            attempt.output("too late")
        except LeaseLost:
            told.append("lost")
        return "first"

    channel = grpc.intercept_channel(server.channel(), Around("ExtendLeases", before=cut_off))
    with working(server, handler, channel=channel) as worker:
        jobs = server.jobs()
        job = submit(jobs, "work").job
        eventually(lambda: begins)
        (leased,) = lease(server, "the other one").leased_jobs
        took = time.monotonic()
        assert leased.job.attempt == 2
        assert 3 < stops[0] - begins[0] < 4.5 and took - stops[0] > 0.5
        taken.set()
        worker.drain()
        stub = WorkerServiceStub(server.channel())
        stub.Finish(work.FinishRequest(lease_token=leased.lease_token, result=Payload(text="second")), timeout=10)
        events, end = gathered(watch(jobs, job.job_id))
    assert (from_payload(end.result), end.attempt, told, outputs(events)) == ("second", 2, ["lost"], "")


def test_a_worker_that_waited_for_longer_than_a_lease_begins_what_comes_and_keeps_it(server: Server) -> None:
    heartbeats, begun = [], []

    def handler(attempt: Attempt):
        begun.append(attempt.job.attempt)
        eventually(lambda: len(heartbeats) >= 4 or attempt.lost.is_set())  # Of 5/3 s each: a lease is over then.
        return attempt.lost.is_set()

    channel = grpc.intercept_channel(server.channel(), Around("ExtendLeases", after=heartbeats.append))
    with working(server, handler, channel=channel):
        time.sleep(5.5)  # Here it is the time itself that counts.
        jobs = server.jobs()
        _, end = gathered(watch(jobs, submit(jobs, "work").job.job_id))
    assert (end.state, end.attempt, begun, from_payload(end.result)) == (Job.STATE_SUCCEEDED, 1, [1], False)


def test_what_arrives_when_its_lease_may_be_over_is_handed_back_and_not_begun(server: Server) -> None:
    """The answer to a Lease is held up until another worker has the job."""
    taken: queue.Queue = queue.Queue()
    begun, ends = [], []

    def held_up(answer: work.LeaseResponse) -> None:
        if answer.leased_jobs and not ends:
            taken.put(lease(server, "the other one").leased_jobs[0])

    around = Around("Lease", after=held_up), Around("Finish", before=ends.append)
    channel = grpc.intercept_channel(server.channel(), *around)
    with working(server, lambda attempt: begun.append(attempt.job.job_id), channel=channel):
        jobs = server.jobs()
        job = submit(jobs, "work").job
        leased = taken.get(timeout=SECONDS)
        eventually(lambda: ends)
        assert ends[0].HasField("hand_back")
        stub = WorkerServiceStub(server.channel())
        stub.Finish(work.FinishRequest(lease_token=leased.lease_token, result=Payload(text="second")), timeout=10)
        assert from_payload(gathered(watch(jobs, job.job_id))[1].result) == "second"
        other = submit(jobs, "work").job
        gathered(watch(jobs, other.job_id))
    assert begun == [other.job_id]


def test_a_worker_that_was_stopped_loses_its_job_to_another_one(server: Server) -> None:
    """A process is stopped for longer than its lease: the second attempt is another worker's, and what the first
    one tells when it wakes up is refused."""
    make_known(server)
    command = [sys.executable, __file__, server.address]
    stopped = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        jobs = server.jobs()
        job = submit(jobs, "work").job
        assert stopped.stdout.readline() == "attempt 1\n"
        stopped.send_signal(signal.SIGSTOP)
        (leased,) = lease(server, "the other one").leased_jobs
        assert (leased.job.job_id, leased.job.attempt) == (job.job_id, 2)
        stopped.send_signal(signal.SIGCONT)
        assert stopped.stdout.readline() == "lost\n"
        # The first one's own end is refused as well; the second one's is what holds.
        old = stopped.stdout.readline().strip()
        stub = WorkerServiceStub(server.channel())
        with pytest.raises(grpc.RpcError) as error:
            stub.Finish(work.FinishRequest(lease_token=old, result=Payload(text="first")), timeout=10)
        assert refusal(error.value) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_LEASE")
        stub.Finish(work.FinishRequest(lease_token=leased.lease_token, result=Payload(text="second")), timeout=10)
        events, end = gathered(watch(jobs, job.job_id))
        assert (from_payload(end.result), end.attempt) == ("second", 2)
        assert not any(event.HasField("output") for event in events)
        stopped.stdin.close()
        assert stopped.wait(SECONDS) == 0
    finally:
        stopped.kill()
        stopped.wait()


def worker_to_be_stopped(address: str) -> None:
    """Says its attempt, then whether it was lost, then its token; ends with its input."""
    channel = pacenote.connect(address)

    def handler(attempt: Attempt):
        print("attempt", attempt.job.attempt, flush=True)
        happens(attempt.lost)
        try:
            attempt.output("too late")
        except LeaseLost:
            print("lost", flush=True)
        print(attempt.lease_token, flush=True)
        return "first"

    worker = Worker(channel, handlers={"work": handler}, lease=5.0)
    threading.Thread(target=lambda: (sys.stdin.read(), worker.drain()), daemon=True).start()
    worker.run()


def test_nothing_is_told_of_a_job_that_is_not_the_workers_any_more(server: Server) -> None:
    told: queue.Queue = queue.Queue()

    def handler(attempt: Attempt):
        stub = WorkerServiceStub(server.channel())
        stub.Finish(work.FinishRequest(lease_token=attempt.lease_token, result=Payload(text="other")), timeout=10)
        try:
            attempt.progress(0.5)
        except LeaseLost:
            told.put(attempt.lost.is_set())
        return "mine"

    with working(server, handler):
        jobs = server.jobs()
        events, end = gathered(watch(jobs, submit(jobs, "work").job.job_id))
        assert told.get(timeout=SECONDS)
    assert from_payload(end.result) == "other" and not any(event.HasField("progress") for event in events)


def test_an_attempt_ends_as_its_handler_does(server: Server) -> None:
    def handler(attempt: Attempt):
        if attempt.job.attempt > 1:
            return ["again", attempt.last_checkpoint]
        match attempt.input:
            case "snooze":
                attempt.checkpoint("so far")
                raise Snooze(0.01)
            case "retry":
                raise Fail("BUSY", "not now", retryable=True, delay=0.01)
            case "fail":
                raise Fail("NO_SUCH_FILE", "it is not there")
            case "bug":
                return 1 / 0
            case "exit":
                sys.exit("enough")
            case "no JSON":
                return {1, 2}
            case "large integer":
                return 2**53 + 1
            case "too large":
                return "x" * (1 << 20)
            case "bad reason":
                raise Fail("no good reason")
            case "bad delay":
                raise Fail("BUSY", retryable=True, delay=1e9)
            case "no delay":
                raise Snooze(1e300)
            case "bytes":
                return b"\xff"

    quick = {"initial_backoff": {"nanos": 1_000_000}}

    def ends(value: str) -> tuple:
        job = submit(jobs, "work", value, retry_policy=quick).job
        events, end = gathered(watch(jobs, job.job_id))
        errors = [event.attempt_end.error for event in events if event.HasField("attempt_end")]
        error = errors[0] if errors else end.error
        return Job.State.Name(end.state)[6:], end.attempts_charged, error, from_payload(end.result)

    with working(server, handler, concurrency=3):
        jobs = server.jobs()
        state, charged, error, result = ends("snooze")
        assert (state, charged, error.reason, result) == ("SUCCEEDED", 1, "", ["again", "so far"])
        state, charged, error, result = ends("retry")
        assert (state, charged, error.reason, error.message) == ("SUCCEEDED", 2, "BUSY", "not now")
        state, charged, error, _ = ends("fail")
        assert (state, charged, error.reason, error.message) == ("FAILED", 1, "NO_SUCH_FILE", "it is not there")
        state, charged, error, _ = ends("bug")
        assert (state, charged, error.reason) == ("SUCCEEDED", 2, "HANDLER_ERROR")
        assert error.message == "ZeroDivisionError: division by zero"
        assert error.detail.startswith("Traceback") and "1 / 0" in error.detail
        assert ends("exit")[2].message == "SystemExit: enough"
        for value in ("no JSON", "large integer", "too large"):
            state, _, error, _ = ends(value)
            assert (state, error.reason) == ("FAILED", "RESULT_INVALID"), value
        state, _, error, _ = ends("bad reason")
        assert (state, error.reason) == ("FAILED", "HANDLER_ERROR") and "reason" in error.message
        state, _, error, _ = ends("bad delay")
        assert (state, error.reason) == ("FAILED", "HANDLER_ERROR") and "delay" in error.message
        assert ends("no delay")[2].message.startswith("OverflowError")
        assert ends("bytes")[3] == b"\xff"


def test_a_drain_waits_for_what_ends_and_hands_back_the_rest(server: Server) -> None:
    release, begun = threading.Event(), threading.Semaphore(0)
    lost = threading.Event()

    def handler(attempt: Attempt):
        begun.release()
        if attempt.input == "quick":
            happens(attempt.draining)
            return "done"
        happens(release)
        with pytest.raises(LeaseLost):
            attempt.output("too late")
        lost.set()

    with working(server, handler, concurrency=3) as worker:
        jobs = server.jobs()
        quick, slow = submit(jobs, "work", "quick").job, submit(jobs, "work", "slow").job
        assert begun.acquire(timeout=SECONDS) and begun.acquire(timeout=SECONDS)
        worker.drain(0.5)
        assert get(jobs, quick.job_id).state == Job.STATE_SUCCEEDED
        handed_back = get(jobs, slow.job_id)
        assert (handed_back.state, handed_back.attempts_charged) == (Job.STATE_QUEUED, 0)
        release.set()
        happens(lost)
        waiting = submit(jobs, "work", "quick").job
        assert get(jobs, waiting.job_id).state == Job.STATE_QUEUED


def test_a_drain_in_the_middle_of_much_work_leaves_nothing_held(server: Server) -> None:
    make_known(server)
    jobs = server.jobs()
    requests = [SubmitRequest(type="work") for _ in range(300)]
    jobs.BatchSubmit(BatchSubmitRequest(requests=requests), timeout=10)
    for _ in range(5):
        some = threading.Semaphore(0)
        with working(server, lambda attempt: some.release(), concurrency=3) as worker:
            for _ in range(10):
                assert some.acquire(timeout=SECONDS)
            worker.drain(5)
        # Handed back, or done; and there is more to do.
        assert not jobs.List(ListRequest(states=[Job.STATE_RUNNING]), timeout=10).jobs
    waiting = jobs.List(ListRequest(states=[Job.STATE_QUEUED], page_size=1_000), timeout=10).jobs
    assert waiting and all(job.attempts_charged == 0 for job in waiting)


def test_a_drain_waits_until_what_comes_meanwhile_is_handed_back(server: Server) -> None:
    """The answer to a Lease is on its way when the drain begins in another thread."""
    make_known(server)
    jobs = server.jobs()
    # It takes a while until such an input is decoded, in which the job must not be overlooked.
    submitted = [submit(jobs, "work", list(range(50_000))).job.job_id for _ in range(3)]
    claimed = threading.Event()

    def on_its_way(answer: work.LeaseResponse) -> None:
        if answer.leased_jobs:
            claimed.set()
            happens(worker.draining)

    slow = Around("Finish", before=lambda request: time.sleep(0.3))  # What it takes on its way.
    channel = grpc.intercept_channel(server.channel(), Around("Lease", after=on_its_way), slow)
    begun = []
    with working(server, begun.append, channel=channel, concurrency=3, lease=60.0) as worker:
        happens(claimed)
        worker.drain(5)
        handed_back = [get(jobs, job_id) for job_id in submitted]
        assert [(job.state, job.attempts_charged) for job in handed_back] == [(Job.STATE_QUEUED, 0)] * 3
        assert not begun


def test_a_drain_does_not_give_up_an_end_that_is_being_told(server: Server) -> None:
    failed = threading.Event()

    def breaks_once(request: work.FinishRequest) -> None:
        if not failed.is_set():
            failed.set()
            happens(worker.draining)
            time.sleep(0.3)  # The drain has no grace: it hands back what runs.
            raise ConnectionBroke()

    channel = grpc.intercept_channel(server.channel(), Around("Finish", before=breaks_once))
    with working(server, lambda attempt: "done", channel=channel, lease=60.0) as worker:
        jobs = server.jobs()
        job = submit(jobs, "work").job
        happens(failed)
        worker.drain(0)
        assert from_payload(get(jobs, job.job_id).result) == "done"


def test_a_drain_does_not_wait_for_a_server_that_is_away(server: Server) -> None:
    begun = threading.Semaphore(0)

    def handler(attempt: Attempt) -> None:
        begun.release()
        happens(attempt.lost)

    with working(server, handler, concurrency=3, lease=60.0) as worker:
        for _ in range(3):
            submit(server.jobs(), "work")
            assert begun.acquire(timeout=SECONDS)
        server.kill()
        began = time.monotonic()
        worker.drain(0)
        assert time.monotonic() - began < 7


def test_as_many_jobs_run_at_once_as_a_worker_has_room_for(server: Server) -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def handler(attempt: Attempt) -> None:
        begun.release()
        assert go_on.acquire(timeout=SECONDS)

    make_known(server)
    jobs = server.jobs()
    submitted = [submit(jobs, "work").job.job_id for _ in range(9)]
    with working(server, handler, concurrency=3):
        for count in range(9):
            assert begun.acquire(timeout=SECONDS)
            running = jobs.List(ListRequest(states=[Job.STATE_RUNNING]), timeout=10).jobs
            assert len(running) == 3, count
            if count >= 2:
                go_on.release()
        go_on.release(2)
        ends = [gathered(watch(jobs, job_id))[1] for job_id in submitted]
    assert {(end.state, end.attempt) for end in ends} == {(Job.STATE_SUCCEEDED, 1)}


def test_leases_of_a_store_that_is_gone_take_no_other_along(server: Server, tmp_path: Path) -> None:
    """The store is replaced under a worker: what it held is lost, and what it gets then is kept."""
    begun: queue.Queue = queue.Queue()
    lost, kept, both = [], [], threading.Event()

    def with_both(request: work.ExtendLeasesRequest) -> None:
        if not both.is_set():
            raise ConnectionBroke()

    def handler(attempt: Attempt):
        begun.put(attempt)
        if attempt.input == "old":
            happens(attempt.lost)
            lost.append(attempt.job.job_id)
            return
        happens(attempt.cancelled)
        kept.append(not attempt.lost.is_set())

    channel = grpc.intercept_channel(server.channel(), Around("ExtendLeases", before=with_both))
    with working(server, handler, channel=channel, concurrency=2):
        jobs = server.jobs()
        old = submit(jobs, "work", "old").job
        begun.get(timeout=SECONDS)
        server.kill()
        for path in tmp_path.glob("pacenote.db*"):
            path.unlink() if path.is_file() else path.rmdir()
        server.start()
        eventually(lambda: is_known(server, "work"))  # By the worker, which has come back.
        new = submit(jobs, "work", "new").job
        begun.get(timeout=SECONDS)
        both.set()
        eventually(lambda: lost == [old.job_id])
        jobs.Cancel(CancelRequest(job_id=new.job_id), timeout=10)
        _, end = gathered(watch(jobs, new.job_id))
    assert (end.state, end.attempt, kept) == (Job.STATE_CANCELLED, 1, [True])


def test_a_worker_that_is_refused_says_so(server: Server) -> None:
    worker = Worker(server.channel(), handlers={"no//name": lambda attempt: None})
    with pytest.raises(grpc.RpcError) as error:
        worker.run()
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_examples_run_and_the_worker_ends_with_sigterm(server: Server) -> None:
    command = [sys.executable, EXAMPLES / "worker.py", server.address]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout.readline() == "waiting for jobs of the type greet\n"
        eventually(lambda: is_known(server, "greet"))
        command = [sys.executable, EXAMPLES / "submit_and_watch.py", server.address]
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert told.returncode == 0, told.stderr
        lines = told.stdout.splitlines()
        assert [line for line in lines if line.startswith("Hello")] == [
            f"Hello, {name}!" for name in ("Ada", "Grace", "Edsger")
        ]
        assert lines[-2:] == ["100%", "STATE_SUCCEEDED {'greeted': 3}"]
        worker.terminate()
        assert worker.wait(SECONDS) == 0
    finally:
        worker.kill()
        worker.wait()


if __name__ == "__main__":
    worker_to_be_stopped(sys.argv[1])
