package dev.pacenote.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.pacenote.v1.BatchSubmitRequest;
import dev.pacenote.v1.CancelRequest;
import dev.pacenote.v1.FinishRequest;
import dev.pacenote.v1.GetRequest;
import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobError;
import dev.pacenote.v1.JobEvent;
import dev.pacenote.v1.LeaseRequest;
import dev.pacenote.v1.LeasedJob;
import dev.pacenote.v1.ListRequest;
import dev.pacenote.v1.LogLine;
import dev.pacenote.v1.Payload;
import dev.pacenote.v1.Progress;
import dev.pacenote.v1.ReportRequest;
import dev.pacenote.v1.RetryPolicy;
import dev.pacenote.v1.SubmitRequest;
import dev.pacenote.v1.WorkerEvent;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Workers against a real server, whose binary is $PACENOTE. */
@Timeout(60)
class WorkerTest {
    private final Network network = new Network();
    private final List<Worker> workers = new ArrayList<>();
    private final List<CompletableFuture<Void>> runs = new ArrayList<>();
    private Server server;
    private ManagedChannel channel;

    @BeforeEach
    void start(@TempDir Path folder) {
        server = new Server(folder);
        channel = server.channel();
        server.lease("makes the type known", Duration.ZERO);
    }

    @AfterEach
    void end() throws Exception {
        network.isCut = method -> false;
        workers.forEach(worker -> worker.drain(Duration.ZERO));
        for (CompletableFuture<Void> run : runs) {
            run.get(20, TimeUnit.SECONDS);
        }
        if (server != null) {
            server.close();
        }
    }

    /** A worker for the type {@code work}, behind the network. */
    private Worker working(Handler handler, int concurrency) {
        LeaseRequest wanted = LeaseRequest.newBuilder()
                .setWorkerId("worker-1").setMaxJobs(concurrency).setLease(Calls.proto(Duration.ofSeconds(5))).build();
        Worker worker = new Worker(server.channel(network), Map.of("work", handler), wanted);
        workers.add(worker);
        runs.add(WatchTest.inThread(() -> {
            worker.run();
            return null;
        }));
        return worker;
    }

    private String submit(Object input) {
        return Pacenote.submit(channel, "work", input).getJob().getJobId();
    }

    private Log log(String jobId) {
        return Log.watch(channel, jobId);
    }

    private Job get(String jobId) {
        return server.jobs().get(GetRequest.newBuilder().setJobId(jobId).build()).getJob();
    }

    private void cancel(String jobId, String reason) {
        server.jobs().cancel(CancelRequest.newBuilder().setJobId(jobId).setReason(reason).build());
    }

    private List<Job> list(Job.State state) {
        return server.jobs().list(ListRequest.newBuilder().addStates(state).setPageSize(1_000).build()).getJobsList();
    }

    private StatusRuntimeException refusedFinish(String token) {
        FinishRequest request = FinishRequest.newBuilder().setLeaseToken(token).setResult(Payloads.of("first")).build();
        return assertThrows(StatusRuntimeException.class, () -> server.workers().finish(request));
    }

    private static void happens(CountDownLatch latch) throws InterruptedException {
        assertTrue(latch.await(20, TimeUnit.SECONDS), "it did not happen in time");
    }

    private static void acquire(Semaphore semaphore, int permits) throws InterruptedException {
        assertTrue(semaphore.tryAcquire(permits, 20, TimeUnit.SECONDS), "it did not happen in time");
    }

    private static <A> A take(BlockingQueue<A> queue) throws InterruptedException {
        A found = queue.poll(20, TimeUnit.SECONDS);
        assertTrue(found != null, "it did not happen in time");
        return found;
    }

    @Test
    void all_that_a_worker_tells_is_seen_in_the_watch() {
        working(attempt -> {
            assertEquals(Map.of("rows", 4L, "name", "Ada"), attempt.input());
            attempt.log("begins");
            attempt.progress(Progress.newBuilder()
                    .setCompletedUnits(1).setTotalUnits(4).setUnit("rows").setPhase("read").build());
            attempt.output("one ");
            attempt.output("zwölf");
            attempt.output("tokens", "other");
            attempt.report(ReportRequest.newBuilder()
                    .addEvents(WorkerEvent.newBuilder().setLog(LogLine.newBuilder()
                            .setLevel(LogLine.Level.LEVEL_WARN).setMessage("together")))
                    .setCheckpoint(Payloads.of(Map.of("row", 1))));
            attempt.progress(0.75);
            return Map.of("rows", 4, "text", "fertig", "half", 0.5);
        }, 1);
        SubmitRequest request = SubmitRequest.newBuilder()
                .setType("work").setInput(Payloads.of(Map.of("rows", 4, "name", "Ada"))).putLabels("of", "test")
                .build();
        Log log = log(Pacenote.submit(channel, request, Server.SECONDS).getJob().getJobId());
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertEquals("worker-1", log.end().getWorkerId());
        assertEquals(Map.of("of", "test"), log.end().getLabelsMap());
        assertEquals(Map.of("rows", 4L, "text", "fertig", "half", 0.5), log.result());
        assertEquals(Map.of("row", 1L), Payloads.value(log.end().getCheckpoint()));
        assertEquals("one zwölf", log.output());
        assertEquals("other", log.output("tokens"));
        List<LogLine> lines = log.events().stream().filter(JobEvent::hasLog).map(JobEvent::getLog).toList();
        assertEquals(List.of("LEVEL_INFO begins", "LEVEL_WARN together"),
                lines.stream().map(line -> line.getLevel() + " " + line.getMessage()).toList());
        assertEquals(0.75, log.end().getProgress().getFraction());
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void what_is_sent_again_because_the_connection_broke_is_stored_once(boolean losesAnswers) {
        network.losesOnce = Set.of("Report", "Finish")::contains;
        network.losesAnswers = losesAnswers;
        working(attempt -> {
            for (int number = 0; number < 4; number++) {
                attempt.output(number + " ");
            }
            return "done";
        }, 1);
        Log log = log(submit(null));
        assertEquals("0 1 2 3 ", log.output());
        assertEquals("done", log.result());
        assertEquals(1, log.end().getAttempt());
        assertEquals(List.of("Report", "Report", "Report", "Report", "Finish"), network.lost);
    }

    @Test
    void an_output_larger_than_a_chunk_arrives_whole() {
        String text = "äöü€😀".repeat(50_000) + "!" + "😀".repeat(50_000);
        working(attempt -> {
            attempt.output(text);
            return null;
        }, 1);
        Log log = log(submit(null));
        assertEquals(text, log.output());
        assertFalse(log.end().hasResult());
    }

    @Test
    void what_several_threads_tell_at_once_is_stored_once_each() {
        network.losesOnce = "Report"::equals;
        network.losesAnswers = true;
        working(attempt -> {
            IntStream.range(0, 8).mapToObj(thread -> CompletableFuture.runAsync(() -> {
                for (int number = 0; number < 5; number++) {
                    attempt.output(thread + "." + number + " ");
                }
            })).toList().forEach(CompletableFuture::join);
            return null;
        }, 1);
        List<String> told = List.of(log(submit(null)).output().split(" "));
        assertEquals(40, told.size());
        assertEquals(40, new TreeSet<>(told).size());
    }

    @Test
    void an_interrupt_does_not_cut_what_is_being_told() {
        network.losesOnce = "Report"::equals;
        working(attempt -> {
            Thread handler = Thread.currentThread();
            for (int number = 0; number < 5; number++) {
                CompletableFuture.runAsync(handler::interrupt);
                attempt.output(number + " ");
            }
            Server.happens(handler::isInterrupted);
            return Thread.interrupted();
        }, 1);
        Log log = log(submit(null));
        assertEquals("0 1 2 3 4 ", log.output());
        assertEquals(true, log.result());
    }

    @Test
    void a_worker_outlives_a_restart_of_its_server() throws Exception {
        CountDownLatch told = new CountDownLatch(1);
        CountDownLatch goOn = new CountDownLatch(1);
        working(attempt -> {
            for (int number = 0; number < 10; number++) {
                attempt.output(number + " ");
                if (number == 4) {
                    told.countDown();
                    happens(goOn);
                }
            }
            return attempt.job().getAttempt();
        }, 1);
        String jobId = submit(null);
        CompletableFuture<Log> watch = CompletableFuture.supplyAsync(() -> log(jobId));
        happens(told);
        server.kill();
        goOn.countDown(); // It tells more while the server is away.
        server.start();
        Log log = watch.get(20, TimeUnit.SECONDS);
        assertEquals("0 1 2 3 4 5 6 7 8 9 ", log.output());
        assertEquals(1L, log.result());
    }

    @Test
    void a_heartbeat_keeps_a_lease_and_brings_a_cancel() {
        BlockingQueue<String> reasons = new LinkedBlockingQueue<>();
        working(attempt -> {
            try {
                Thread.sleep(60_000); // It tells nothing meanwhile.
            } catch (InterruptedException interrupt) {
                attempt.log("it cleans up"); // What it may still tell.
                reasons.add(attempt.isCancelled() + " " + attempt.isLost() + " " + attempt.cancelReason());
            }
            return "too late";
        }, 1);
        String jobId = submit(null);
        Server.happens(() -> get(jobId).getState() == Job.State.STATE_RUNNING);
        // Of 5/3 s each: the lease of 5 s would be over.
        Server.happens(() -> network.count(network.answered, "ExtendLeases") >= 4);
        assertEquals(1, get(jobId).getAttempt());
        cancel(jobId, "enough");
        Log log = log(jobId);
        assertEquals(Job.State.STATE_CANCELLED, log.end().getState());
        assertEquals(1, log.end().getAttempt());
        assertEquals(List.of("true false enough"), List.copyOf(reasons));
        assertTrue(log.events().stream().anyMatch(JobEvent::hasLog));
    }

    /** The worker's network is cut: it is quiet before another one gets the job, and what it says later is refused. */
    @Test
    void a_worker_that_is_cut_off_stops_by_its_own_clock() throws Exception {
        BlockingQueue<String> begun = new LinkedBlockingQueue<>();
        BlockingQueue<Long> stopped = new LinkedBlockingQueue<>();
        CompletableFuture<Boolean> refused = new CompletableFuture<>();
        working(attempt -> {
            begun.add(attempt.leaseToken());
            if (attempt.input() != null) {
                return "second";
            }
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException interrupt) {
                assertTrue(attempt.isLost());
                stopped.add(System.nanoTime());
                network.isCut = method -> false;
            }
            // Not before the other one has it: a word of ours would be one too much then.
            try {
                attempt.output("too late");
            } catch (LeaseLostException lost) {
                refused.complete(attempt.isLost() && !attempt.isCancelled());
            }
            return "first";
        }, 1);
        String jobId = submit(null);
        String token = take(begun);
        network.isCut = method -> true;
        LeasedJob leased = server.lease("the other one", Duration.ofSeconds(20)).getLeasedJobs(0);
        long leasedAt = System.nanoTime();
        assertEquals(jobId, leased.getJob().getJobId());
        assertEquals(2, leased.getJob().getAttempt());
        assertTrue(leasedAt - take(stopped) > 0, "it stopped only after another one had got the job");
        assertTrue(refused.get(20, TimeUnit.SECONDS));
        assertEquals("FAILED_PRECONDITION STALE_LEASE", WatchTest.refusal(refusedFinish(token)));
        server.workers().finish(FinishRequest.newBuilder()
                .setLeaseToken(leased.getLeaseToken()).setResult(Payloads.of("other")).build());
        Log log = log(jobId);
        assertEquals("other", log.result());
        assertEquals("", log.output());
        // And it goes on leasing.
        assertEquals("second", log(submit("next")).result());
    }

    /** Heartbeats alone are lost, and reports: the server gives the job to another one, and says so to the first. */
    @Test
    void a_worker_without_heartbeats_loses_its_job() throws Exception {
        CountDownLatch begun = new CountDownLatch(1);
        BlockingQueue<String> seen = new LinkedBlockingQueue<>();
        network.isCut = "ExtendLeases"::equals;
        working(attempt -> {
            begun.countDown();
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException interrupt) {
                seen.add("lost " + attempt.isLost());
            }
            return "first";
        }, 1);
        String jobId = submit(null);
        happens(begun);
        LeasedJob leased = server.lease("the other one", Duration.ofSeconds(20)).getLeasedJobs(0);
        assertEquals("lost true", take(seen));
        server.workers().finish(FinishRequest.newBuilder()
                .setLeaseToken(leased.getLeaseToken()).setResult(Payloads.of("other")).build());
        assertEquals("other", log(jobId).result());
        assertEquals(0, network.count(network.begun, "Finish"));
    }

    /** Counted from when the call was sent, its lease would be over: it began when the job was claimed. */
    @Test
    void what_comes_after_a_wait_of_more_than_a_term_is_begun_and_kept() throws Exception {
        BlockingQueue<List<String>> before = new LinkedBlockingQueue<>();
        working(attempt -> {
            before.add(List.copyOf(network.begun));
            Server.happens(() -> network.count(network.answered, "ExtendLeases") >= 4); // Of 5/3 s each.
            return attempt.job().getAttempt();
        }, 1);
        Server.happens(() -> network.count(network.begun, "Lease") == 1);
        TimeUnit.MILLISECONDS.sleep(5_500);
        String jobId = submit(null);
        assertEquals(List.of("Lease"), take(before)); // And no renewal first.
        assertEquals(1L, log(jobId).result());
    }

    @Test
    void what_arrives_after_its_term_is_handed_back_and_not_begun() throws Exception {
        BlockingQueue<String> begun = new LinkedBlockingQueue<>();
        network.letsWorkPass = new CountDownLatch(1);
        working(attempt -> begun.add((String) attempt.input()), 1);
        String jobId = submit("held up");
        happens(network.hasWork);
        LeasedJob leased = server.lease("the other one", Duration.ofSeconds(20)).getLeasedJobs(0);
        assertEquals(jobId, leased.getJob().getJobId());
        network.letsWorkPass.countDown();
        assertEquals(true, log(submit("next")).result());
        assertEquals(List.of("next"), List.copyOf(begun));
        assertEquals(2, network.count(network.begun, "Finish"));
        server.workers().finish(FinishRequest.newBuilder()
                .setLeaseToken(leased.getLeaseToken()).setResult(Payloads.of("other")).build());
        assertEquals("other", log(jobId).result());
    }

    /** A cancel that crossed the answer would leave the job to nobody until its lease ends. */
    @Test
    void what_is_on_its_way_when_a_drain_begins_is_handed_back() throws Exception {
        network.letsWorkPass = new CountDownLatch(1);
        Worker worker = working(attempt -> "begun", 1);
        String jobId = submit(null);
        happens(network.hasWork);
        CompletableFuture<Void> drain = CompletableFuture.runAsync(() -> worker.drain(Duration.ZERO));
        Server.happens(worker::isDraining);
        TimeUnit.MILLISECONDS.sleep(100); // For a cancel that does not wait.
        network.letsWorkPass.countDown();
        drain.get(20, TimeUnit.SECONDS);
        assertEquals(Job.State.STATE_QUEUED, get(jobId).getState());
        assertEquals(0, get(jobId).getAttemptsCharged());
    }

    @Test
    void nothing_is_told_of_a_job_that_is_not_the_workers_any_more() throws Exception {
        BlockingQueue<Boolean> lost = new LinkedBlockingQueue<>();
        working(attempt -> {
            server.workers().finish(FinishRequest.newBuilder()
                    .setLeaseToken(attempt.leaseToken()).setResult(Payloads.of("other")).build());
            try {
                if ("silent".equals(attempt.input())) {
                    Thread.sleep(60_000); // A heartbeat hears it.
                }
                attempt.progress(0.5);
            } catch (LeaseLostException | InterruptedException error) {
                lost.add(attempt.isLost());
            }
            return "mine";
        }, 1);
        for (String input : List.of("silent", "")) {
            Log log = log(submit(input));
            assertTrue(take(lost));
            assertEquals("other", log.result());
            assertFalse(log.events().stream().anyMatch(JobEvent::hasProgress));
        }
        Server.happens(() -> network.count(network.begun, "Lease") == 3);
        assertEquals(0, network.count(network.begun, "Finish"));
    }

    private Log ends(String input) {
        RetryPolicy quick = RetryPolicy.newBuilder().setInitialBackoff(Calls.proto(Duration.ofMillis(1))).build();
        SubmitRequest request = SubmitRequest.newBuilder()
                .setType("work").setInput(Payloads.of(input)).setRetryPolicy(quick).build();
        return log(Pacenote.submit(channel, request, Server.SECONDS).getJob().getJobId());
    }

    private static JobError error(Log log) {
        return log.events().stream()
                .filter(JobEvent::hasAttemptEnd).map(event -> event.getAttemptEnd().getError())
                .findFirst().orElse(log.end().getError());
    }

    @Test
    void an_attempt_ends_as_its_handler_does() {
        List<Object> endless = new ArrayList<>();
        endless.add(endless);
        working(attempt -> {
            if (attempt.job().getAttempt() > 1) {
                return Stream.of("again", attempt.lastCheckpoint()).toList();
            }
            switch ((String) attempt.input()) {
                case "snooze":
                    attempt.checkpoint("so far");
                    throw Outcome.snooze(Duration.ofMillis(10));
                case "retry":
                    throw Outcome.retry(Duration.ofMillis(10), "BUSY", "not now");
                case "fail":
                    throw Outcome.fail("NO_SUCH_FILE", "it is not there", false);
                case "bug":
                    throw new IOException("the disk");
                case "error":
                    throw new StackOverflowError();
                case "no JSON":
                    return new Object();
                case "large integer":
                    return (1L << 53) + 1;
                case "endless":
                    return endless;
                case "too large":
                    return "x".repeat(1 << 20);
                case "bad reason":
                    throw Outcome.fail("no good reason", "", true);
                default:
                    return new byte[] {-1};
            }
        }, 3);
        Log log = ends("snooze");
        assertEquals(List.of("again", "so far"), log.result());
        assertEquals(1, log.end().getAttemptsCharged());
        log = ends("retry");
        assertEquals(2, log.end().getAttemptsCharged());
        assertEquals("BUSY", error(log).getReason());
        assertEquals("not now", error(log).getMessage());
        log = ends("fail");
        assertEquals(Job.State.STATE_FAILED, log.end().getState());
        assertEquals("NO_SUCH_FILE", error(log).getReason());
        assertEquals("it is not there", error(log).getMessage());
        log = ends("bug");
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertEquals("HANDLER_ERROR", error(log).getReason());
        assertEquals("java.io.IOException: the disk", error(log).getMessage());
        assertTrue(error(log).getDetail().contains("\tat dev.pacenote.client.WorkerTest"));
        assertEquals("java.lang.StackOverflowError", error(ends("error")).getMessage());
        for (String input : List.of("no JSON", "large integer", "endless", "too large")) {
            log = ends(input);
            assertEquals("STATE_FAILED RESULT_INVALID", log.end().getState() + " " + error(log).getReason(), input);
        }
        log = ends("bad reason");
        assertEquals("STATE_FAILED HANDLER_ERROR", log.end().getState() + " " + error(log).getReason());
        assertTrue(error(log).getMessage().contains("reason"));
        assertEquals(-1, ((byte[]) ends("bytes").result())[0]);
    }

    @Test
    void a_drain_waits_for_what_ends_and_hands_back_the_rest() throws Exception {
        Semaphore begun = new Semaphore(0);
        BlockingQueue<String> lost = new LinkedBlockingQueue<>();
        Worker worker = working(attempt -> {
            begun.release();
            if ("quick".equals(attempt.input())) {
                Server.happens(attempt::isDraining);
                return "done";
            }
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException interrupt) {
                assertThrows(LeaseLostException.class, () -> attempt.output("too late"));
                lost.add("lost " + attempt.isLost());
            }
            return "too late";
        }, 3);
        String quick = submit("quick");
        String slow = submit("slow");
        acquire(begun, 2);
        worker.drain(Duration.ofMillis(500));
        assertEquals(Job.State.STATE_SUCCEEDED, get(quick).getState());
        assertEquals(Job.State.STATE_QUEUED, get(slow).getState());
        assertEquals(0, get(slow).getAttemptsCharged());
        assertEquals("lost true", take(lost));
        runs.get(0).get(20, TimeUnit.SECONDS);
        assertEquals(Job.State.STATE_QUEUED, get(submit("quick")).getState());
    }

    @Test
    void an_end_that_is_being_told_is_told_by_a_drain_without_grace() throws Exception {
        network.losesOnce = "Finish"::equals;
        network.losesAnswers = false;
        Worker worker = working(attempt -> "done", 1);
        String jobId = submit(null);
        Server.happens(() -> network.lost.contains("Finish"));
        worker.drain(Duration.ZERO);
        assertEquals(Job.State.STATE_SUCCEEDED, get(jobId).getState());
    }

    @Test
    void a_drain_in_the_middle_of_much_work_leaves_nothing_held() throws Exception {
        SubmitRequest request = SubmitRequest.newBuilder().setType("work").build();
        server.jobs().batchSubmit(
                BatchSubmitRequest.newBuilder().addAllRequests(Collections.nCopies(300, request)).build());
        for (int round = 0; round < 5; round++) {
            Semaphore some = new Semaphore(0);
            Worker worker = working(attempt -> {
                some.release();
                return null;
            }, 3);
            acquire(some, 10);
            worker.drain(Duration.ofSeconds(5));
            // Handed back, or done; and there is more to do.
            assertEquals(List.of(), list(Job.State.STATE_RUNNING));
        }
        List<Job> waiting = list(Job.State.STATE_QUEUED);
        assertFalse(waiting.isEmpty());
        assertTrue(waiting.stream().allMatch(job -> job.getAttemptsCharged() == 0));
    }

    @Test
    void as_many_jobs_run_at_once_as_a_worker_has_room_for() throws Exception {
        Semaphore begun = new Semaphore(0);
        Semaphore goOn = new Semaphore(0);
        Supplier<String> next = () -> submit(null);
        List<String> submitted = Stream.generate(next).limit(9).toList();
        working(attempt -> {
            begun.release();
            acquire(goOn, 1);
            return null;
        }, 3);
        for (int count = 0; count < 9; count++) {
            acquire(begun, 1);
            assertEquals(3, list(Job.State.STATE_RUNNING).size());
            if (count >= 2) {
                goOn.release();
            }
        }
        goOn.release(2);
        Set<String> ends = submitted.stream().map(jobId -> log(jobId).end())
                .map(end -> end.getState() + " " + end.getAttempt()).collect(Collectors.toSet());
        assertEquals(Set.of("STATE_SUCCEEDED 1"), ends);
    }

    /** The store is replaced under a worker: what it held is lost, and what it gets then is kept. */
    @Test
    void leases_of_a_store_that_is_gone_take_no_other_along() throws Exception {
        BlockingQueue<String> begun = new LinkedBlockingQueue<>();
        BlockingQueue<String> lost = new LinkedBlockingQueue<>();
        CountDownLatch over = new CountDownLatch(1);
        working(attempt -> {
            begun.add(attempt.job().getJobId());
            try {
                Thread.sleep(60_000);
            } catch (InterruptedException interrupt) {
                if (attempt.isLost()) {
                    lost.add(attempt.job().getJobId());
                    happens(over); // It keeps its place: with the next heartbeat there are both.
                }
            }
            return null;
        }, 2);
        String old = submit("old");
        assertEquals(old, take(begun));
        server.kill();
        try (Stream<Path> files = Files.list(server.folder)) {
            files.filter(file -> file.getFileName().toString().startsWith("pacenote.db")).forEach(file -> {
                try {
                    Files.delete(file);
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            });
        }
        server.start();
        Server.happens(() -> server.isKnown("work")); // By the worker, which has come back.
        String fresh = submit("new");
        assertEquals(fresh, take(begun));
        assertEquals(old, take(lost));
        cancel(fresh, "");
        Log log = log(fresh);
        assertEquals(Job.State.STATE_CANCELLED, log.end().getState());
        assertEquals(1, log.end().getAttempt());
        over.countDown();
    }

    @Test
    void a_worker_that_is_refused_says_so_and_one_that_is_interrupted_ends() throws Exception {
        Worker worker = new Worker(channel, Map.of("no//name", attempt -> null), 1);
        StatusRuntimeException error = assertThrows(StatusRuntimeException.class, worker::run);
        assertEquals(Status.Code.INVALID_ARGUMENT, error.getStatus().getCode());
        assertTrue(StatusProto.fromThrowable(error).getDetailsCount() > 0);
        Worker closed = new Worker(channel, Map.of("work", attempt -> null), 0);
        closed.close();
        closed.run();
        Thread.currentThread().interrupt();
        new Worker(channel, Map.of("work", attempt -> null), 1).run();
        assertTrue(Thread.interrupted());
    }
}
