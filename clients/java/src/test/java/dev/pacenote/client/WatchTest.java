package dev.pacenote.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import dev.pacenote.v1.CancelRequest;
import dev.pacenote.v1.GetRequest;
import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobEvent;
import dev.pacenote.v1.JobServiceGrpc;
import dev.pacenote.v1.OutputChunk;
import dev.pacenote.v1.Payload;
import dev.pacenote.v1.ReportRequest;
import dev.pacenote.v1.SubmitRequest;
import dev.pacenote.v1.SubmitResponse;
import dev.pacenote.v1.WatchJobRequest;
import dev.pacenote.v1.WatchJobResponse;
import dev.pacenote.v1.WorkerEvent;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** Submits and watches against a real server, whose binary is $PACENOTE. */
@Timeout(60)
class WatchTest {
    private Server server;

    @BeforeEach
    void start(@TempDir Path folder) {
        server = new Server(folder);
    }

    @AfterEach
    void end() {
        if (server != null) {
            server.close();
        }
    }

    static String refusal(StatusRuntimeException error) {
        try {
            String reason = StatusProto.fromThrowable(error).getDetails(0).unpack(ErrorInfo.class).getReason();
            return error.getStatus().getCode() + " " + reason;
        } catch (InvalidProtocolBufferException malformed) {
            throw new AssertionError(malformed);
        }
    }

    private static SubmitRequest sleeps(double seconds, String key) {
        Payload input = Payloads.of(Map.of("seconds", seconds));
        return SubmitRequest.newBuilder().setType("sleep").setInput(input).setIdempotencyKey(key).build();
    }

    private String sleeping(ManagedChannel channel, double seconds) {
        return Pacenote.submit(channel, "sleep", Map.of("seconds", seconds)).getJob().getJobId();
    }

    /** A job that does nothing until somebody leases it. */
    private String waiting(ManagedChannel channel) {
        server.lease("the first one", Duration.ZERO);
        return Pacenote.submit(channel, "work", null).getJob().getJobId();
    }

    private void cancel(String jobId) {
        server.jobs().cancel(CancelRequest.newBuilder().setJobId(jobId).build());
    }

    static <A> CompletableFuture<A> inThread(Callable<A> work) {
        CompletableFuture<A> answer = new CompletableFuture<>();
        Thread thread = new Thread(() -> {
            try {
                answer.complete(work.call());
            } catch (Throwable error) {
                answer.completeExceptionally(error);
            }
        });
        thread.setDaemon(true);
        thread.start();
        return answer;
    }

    @Test
    void a_job_is_watched_from_its_submit_to_its_result() throws Exception {
        ManagedChannel channel = server.channel();
        String jobId = sleeping(channel, 0.5);
        Log log = Log.watch(channel, jobId);
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertEquals(Map.of("slept_seconds", 0.5), log.result());
        List<Double> fractions = log.events().stream()
                .filter(JobEvent::hasProgress).map(event -> event.getProgress().getFraction()).toList();
        assertEquals(fractions.stream().sorted().toList(), fractions);
        assertEquals(1.0, fractions.get(fractions.size() - 1));
        // With a snapshot first, and of a job that is over.
        List<WatchJobResponse> messages = new ArrayList<>();
        WatchJobRequest request = WatchJobRequest.newBuilder().setJobId(jobId).build();
        assertEquals(log.end(), Pacenote.watch(channel, request, messages::add));
        assertEquals(1, messages.size());
    }

    @Test
    void a_watch_goes_on_after_the_server_was_killed_and_started_again() throws Exception {
        ManagedChannel channel = server.channel();
        String jobId = sleeping(channel, 2);
        List<WatchJobResponse> messages = new ArrayList<>();
        boolean[] wasKilled = {false};
        Pacenote.watch(channel, jobId, message -> {
            messages.add(message);
            if (!wasKilled[0] && message.getThroughSequence() >= 5) {
                wasKilled[0] = true;
                server.kill();
                server.start();
            }
        });
        Log log = Log.of(messages);
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertEquals(2, log.end().getAttempt());
        assertEquals(List.of("WORKER_LOST"), log.events().stream()
                .filter(JobEvent::hasAttemptEnd).map(event -> event.getAttemptEnd().getError().getReason()).toList());
    }

    /** Ends a watch from within. */
    private static final class Enough extends RuntimeException {
        private static final long serialVersionUID = 1;
    }

    @Test
    void a_watch_that_is_left_and_begun_anew_at_every_message_loses_nothing() throws Exception {
        ManagedChannel channel = server.channel();
        WatchJobRequest.Builder request =
                WatchJobRequest.newBuilder().setJobId(sleeping(channel, 2)).setAfterSequence(0);
        List<WatchJobResponse> messages = new ArrayList<>();
        do {
            assertThrows(Enough.class, () -> Pacenote.watch(channel, request.build(), message -> {
                messages.add(message);
                request.setAfterSequence(message.getThroughSequence());
                throw new Enough();
            }));
        } while (!messages.get(messages.size() - 1).hasSnapshot());
        assertEquals(Job.State.STATE_SUCCEEDED, Log.of(messages).end().getState());
        assertTrue(messages.size() > 3);
    }

    /** A stopped server says nothing and closes nothing; the watch asks again, and loses nothing. */
    @Test
    void a_watch_takes_a_stream_that_is_silent_for_dead() throws Exception {
        Network network = new Network();
        ManagedChannel channel = server.channel(network);
        String jobId = waiting(channel);
        WatchJobRequest request = WatchJobRequest.newBuilder().setJobId(jobId).setAfterSequence(0)
                .setHeartbeatInterval(Calls.proto(Duration.ofSeconds(1))).build();
        List<WatchJobResponse> messages = Collections.synchronizedList(new ArrayList<>());
        CompletableFuture<Job> end = inThread(() -> Pacenote.watch(channel, request, messages::add));
        Server.happens(() -> !messages.isEmpty());
        server.signal("STOP");
        Server.happens(() -> network.count(network.begun, "WatchJob") > 1);
        server.signal("CONT");
        cancel(jobId);
        assertEquals(Job.State.STATE_CANCELLED, end.get(20, TimeUnit.SECONDS).getState());
        Log.of(messages);
    }

    @Test
    void a_stream_that_a_proxy_ends_with_ok_is_no_end() {
        Network network = new Network();
        network.messagesMax = 2;
        ManagedChannel channel = server.channel(network);
        Log log = Log.watch(channel, sleeping(channel, 0.5));
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertTrue(network.count(network.begun, "WatchJob") > 2);
    }

    @Test
    void a_watch_stops_where_asking_again_does_not_help() {
        ManagedChannel channel = server.channel();
        StatusRuntimeException error = assertThrows(StatusRuntimeException.class,
                () -> Pacenote.watch(channel, "01987654-0000-7000-8000-000000000000", message -> {}));
        assertEquals("NOT_FOUND JOB_NOT_FOUND", refusal(error));
        WatchJobRequest ahead =
                WatchJobRequest.newBuilder().setJobId(sleeping(channel, 0)).setAfterSequence(99).build();
        error = assertThrows(StatusRuntimeException.class, () -> Pacenote.watch(channel, ahead, message -> {}));
        assertEquals("FAILED_PRECONDITION SEQUENCE_AHEAD", refusal(error));
    }

    @Test
    void a_watch_is_ended_from_outside_and_the_job_goes_on() throws Exception {
        ManagedChannel channel = server.channel();
        String jobId = waiting(channel);
        // By its context, while it waits.
        Context.CancellableContext context = Context.current().withCancellation();
        CompletableFuture<Job> watch = inThread(() -> context.call(
                () -> Pacenote.watch(channel, jobId, message -> CompletableFuture.delayedExecutor(
                        200, TimeUnit.MILLISECONDS).execute(() -> context.cancel(null)))));
        Throwable error = assertThrows(ExecutionException.class, () -> watch.get(20, TimeUnit.SECONDS)).getCause();
        assertEquals(Status.Code.CANCELLED, Status.fromThrowable(error).getCode());
        // By an interrupt; also where there is no server to wait for.
        assertThrows(InterruptedException.class,
                () -> Pacenote.watch(channel, jobId, message -> Thread.currentThread().interrupt()));
        Thread.currentThread().interrupt();
        ManagedChannel nowhere = Pacenote.connect("127.0.0.1:1");
        assertThrows(InterruptedException.class, () -> Pacenote.watch(nowhere, jobId, message -> {}));
        nowhere.shutdownNow();
        Job job = server.jobs().get(GetRequest.newBuilder().setJobId(jobId).build()).getJob();
        assertEquals(Job.State.STATE_QUEUED, job.getState());
    }

    @Test
    void watches_that_nobody_reads_leave_room_for_their_neighbours() throws Exception {
        ManagedChannel channel = server.channel();
        String jobId = waiting(channel);
        String token = server.lease("one", Server.SECONDS).getLeasedJobs(0).getLeaseToken();
        String text = "x".repeat(500_000);
        OutputChunk chunk =
                OutputChunk.newBuilder().setStream("stdout").setChunk(Payload.newBuilder().setText(text)).build();
        for (int number = 0; number < 8; number++) {
            server.workers().report(ReportRequest.newBuilder()
                    .setLeaseToken(token).addEvents(WorkerEvent.newBuilder().setOutput(chunk)).build());
        }
        Context.CancellableContext context = Context.current().withCancellation();
        Semaphore reading = new Semaphore(0);
        CountDownLatch over = new CountDownLatch(1);
        for (int number = 0; number < 8; number++) {
            inThread(() -> context.call(() -> Pacenote.watch(channel, jobId, message -> {
                reading.release();
                Server.happens(over);
            })));
        }
        assertTrue(reading.tryAcquire(8, 20, TimeUnit.SECONDS));
        for (int number = 0; number < 50; number++) {
            JobServiceGrpc.newBlockingStub(channel).withDeadlineAfter(5, TimeUnit.SECONDS)
                    .get(GetRequest.newBuilder().setJobId(jobId).build());
        }
        context.cancel(null);
        over.countDown();
    }

    @Test
    void a_key_that_is_used_twice_leads_to_the_same_job() {
        ManagedChannel channel = server.channel();
        SubmitResponse first = Pacenote.submit(channel, sleeps(0, "once"), Server.SECONDS);
        SubmitResponse again = Pacenote.submit(channel, sleeps(0, "once"), Server.SECONDS);
        assertFalse(first.getDeduplicated());
        assertTrue(again.getDeduplicated());
        assertEquals(first.getJob().getJobId(), again.getJob().getJobId());
        StatusRuntimeException error = assertThrows(StatusRuntimeException.class,
                () -> Pacenote.submit(channel, sleeps(1, "once"), Server.SECONDS));
        assertEquals("ALREADY_EXISTS IDEMPOTENCY_KEY_REUSED", refusal(error));
        // Each without a key has one of its own.
        assertNotEquals(sleeping(channel, 0), sleeping(channel, 0));
    }

    @Test
    void a_submit_whose_answer_was_lost_makes_one_job() {
        Network network = new Network();
        network.losesOnce = "Submit"::equals;
        network.losesAnswers = true;
        SubmitResponse answer = Pacenote.submit(server.channel(network), "sleep", Map.of("seconds", 0));
        assertTrue(answer.getDeduplicated());
        assertEquals(List.of("Submit"), network.lost);
    }

    @Test
    void a_submit_waits_for_a_server_that_is_away_and_not_for_ever() throws Exception {
        ManagedChannel channel = server.channel();
        sleeping(channel, 0);
        server.kill();
        Duration deadline = Duration.ofSeconds(3);
        long begun = System.nanoTime();
        // Long enough for the channel's own backoff to grow to several seconds.
        while (System.nanoTime() - begun < Duration.ofSeconds(11).toNanos()) {
            long tried = System.nanoTime();
            StatusRuntimeException error = assertThrows(
                    StatusRuntimeException.class, () -> Pacenote.submit(channel, sleeps(0, ""), deadline));
            assertEquals(Status.Code.UNAVAILABLE, error.getStatus().getCode());
            assertTrue(System.nanoTime() - tried < deadline.plusSeconds(1).toNanos());
        }
        // A context ends it as well, and an interrupt does not.
        Context.CancellableContext context = Context.current().withCancellation();
        CompletableFuture<String> submit = inThread(() -> context.call(() -> sleeping(channel, 0)));
        context.cancel(null);
        Server.happens(submit::isCompletedExceptionally);
        submit = inThread(() -> {
            Thread.currentThread().interrupt();
            String jobId = sleeping(channel, 0);
            assertTrue(Thread.interrupted());
            return jobId;
        });
        server.start();
        begun = System.nanoTime();
        assertFalse(submit.get(20, TimeUnit.SECONDS).isEmpty());
        assertTrue(System.nanoTime() - begun < Duration.ofSeconds(2).toNanos());
    }
}
