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
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.concurrent.CompletableFuture;
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

    @Test
    void a_job_is_watched_from_its_submit_to_its_result() {
        ManagedChannel channel = server.channel();
        String jobId = sleeping(channel, 0.5);
        Watch watch = Pacenote.watch(channel, jobId);
        assertEquals(OptionalLong.of(0), watch.cursor());
        Log log = Log.of(watch);
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertEquals(Map.of("slept_seconds", 0.5), log.result());
        assertEquals(OptionalLong.of(log.events().size()), watch.cursor());
        List<Double> fractions = log.events().stream()
                .filter(JobEvent::hasProgress).map(event -> event.getProgress().getFraction()).toList();
        assertEquals(fractions.stream().sorted().toList(), fractions);
        assertEquals(1.0, fractions.get(fractions.size() - 1));
        // With a snapshot first, and of a job that is over.
        Watch again = Pacenote.watch(channel, WatchJobRequest.newBuilder().setJobId(jobId).build());
        assertEquals(OptionalLong.empty(), again.cursor());
        assertEquals(log.end(), again.next().getSnapshot());
        assertFalse(again.hasNext());
    }

    @Test
    void a_watch_goes_on_after_the_server_was_killed_and_started_again() {
        ManagedChannel channel = server.channel();
        String jobId = sleeping(channel, 2);
        int[] seen = {0};
        Log log = Log.of(Pacenote.watch(channel, jobId), message -> {
            int before = seen[0];
            seen[0] += message.getEvents().getEventsCount();
            if (before < 5 && seen[0] >= 5) {
                server.kill();
                server.start();
            }
        });
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertEquals(2, log.end().getAttempt());
        assertEquals(List.of("WORKER_LOST"), log.events().stream()
                .filter(JobEvent::hasAttemptEnd).map(event -> event.getAttemptEnd().getError().getReason()).toList());
    }

    @Test
    void a_watch_that_is_closed_and_begun_anew_at_every_message_loses_nothing() {
        ManagedChannel channel = server.channel();
        WatchJobRequest.Builder request =
                WatchJobRequest.newBuilder().setJobId(sleeping(channel, 2)).setAfterSequence(0);
        List<WatchJobResponse> messages = new ArrayList<>();
        do {
            try (Watch watch = Pacenote.watch(channel, request.build())) {
                messages.add(watch.next());
                long cursor = watch.cursor().getAsLong();
                watch.hasNext(); // One more is received, and not handed out.
                assertEquals(cursor, watch.cursor().getAsLong());
                request.setAfterSequence(cursor);
            }
        } while (!messages.get(messages.size() - 1).hasSnapshot());
        assertEquals(Job.State.STATE_SUCCEEDED, Log.of(messages.iterator()).end().getState());
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
        Watch watch = Pacenote.watch(channel, request);
        List<WatchJobResponse> messages = new ArrayList<>(List.of(watch.next()));
        server.signal("STOP");
        CompletableFuture<Void> rest = CompletableFuture.runAsync(() -> watch.forEachRemaining(messages::add));
        Server.happens(() -> network.count(network.begun, "WatchJob") > 1);
        server.signal("CONT");
        cancel(jobId);
        rest.get(20, TimeUnit.SECONDS);
        assertEquals(Job.State.STATE_CANCELLED, Log.of(messages.iterator()).end().getState());
    }

    @Test
    void a_stream_that_a_proxy_ends_with_ok_is_no_end() {
        Network network = new Network();
        network.messagesMax = 2;
        ManagedChannel channel = server.channel(network);
        Log log = Log.of(Pacenote.watch(channel, sleeping(channel, 0.5)));
        assertEquals(Job.State.STATE_SUCCEEDED, log.end().getState());
        assertTrue(network.count(network.begun, "WatchJob") > 2);
    }

    @Test
    void a_watch_stops_where_asking_again_does_not_help() {
        ManagedChannel channel = server.channel();
        Watch unknown = Pacenote.watch(channel, "01987654-0000-7000-8000-000000000000");
        assertEquals("NOT_FOUND JOB_NOT_FOUND", refusal(assertThrows(StatusRuntimeException.class, unknown::next)));
        assertFalse(unknown.hasNext());
        WatchJobRequest ahead =
                WatchJobRequest.newBuilder().setJobId(sleeping(channel, 0)).setAfterSequence(99).build();
        Watch watch = Pacenote.watch(channel, ahead);
        String refusal = refusal(assertThrows(StatusRuntimeException.class, watch::hasNext));
        assertEquals("FAILED_PRECONDITION SEQUENCE_AHEAD", refusal);
    }

    @Test
    void a_watch_is_ended_from_outside_and_the_job_goes_on() throws Exception {
        ManagedChannel channel = server.channel();
        String jobId = waiting(channel);
        Watch closed = Pacenote.watch(channel, jobId);
        closed.next();
        CompletableFuture<Boolean> more = CompletableFuture.supplyAsync(closed::hasNext);
        closed.close();
        assertFalse(more.get(20, TimeUnit.SECONDS));
        // By its context.
        Context.CancellableContext context = Context.current().withCancellation();
        Watch[] watch = new Watch[1];
        context.run(() -> watch[0] = Pacenote.watch(channel, jobId));
        watch[0].next();
        context.cancel(null);
        StatusRuntimeException error = assertThrows(StatusRuntimeException.class, watch[0]::hasNext);
        assertEquals(Status.Code.CANCELLED, error.getStatus().getCode());
        // By an interrupt, which is kept; also where there is no server to wait for.
        Watch interrupted = Pacenote.watch(channel, jobId);
        interrupted.next();
        Thread.currentThread().interrupt();
        error = assertThrows(StatusRuntimeException.class, interrupted::hasNext);
        assertTrue(Thread.interrupted());
        assertEquals(Status.Code.CANCELLED, error.getStatus().getCode());
        Job job = server.jobs().get(GetRequest.newBuilder().setJobId(jobId).build()).getJob();
        assertEquals(Job.State.STATE_QUEUED, job.getState());
    }

    @Test
    void watches_that_nobody_reads_leave_room_for_their_neighbours() {
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
        List<Watch> slow = new ArrayList<>();
        for (int number = 0; number < 8; number++) {
            slow.add(Pacenote.watch(channel, jobId));
            slow.get(number).next();
        }
        for (int number = 0; number < 50; number++) {
            JobServiceGrpc.newBlockingStub(channel).withDeadlineAfter(5, TimeUnit.SECONDS)
                    .get(GetRequest.newBuilder().setJobId(jobId).build());
        }
        slow.forEach(Watch::close);
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
        // A context and an interrupt end it as well.
        Context.CancellableContext context = Context.current().withCancellation();
        CompletableFuture<SubmitResponse> submit =
                CompletableFuture.supplyAsync(() -> submitIn(context, channel));
        context.cancel(null);
        Server.happens(submit::isCompletedExceptionally);
        Thread.currentThread().interrupt();
        assertThrows(StatusRuntimeException.class, () -> sleeping(channel, 0));
        assertTrue(Thread.interrupted());

        submit = CompletableFuture.supplyAsync(() -> submitIn(Context.ROOT, channel));
        server.start();
        begun = System.nanoTime();
        assertFalse(submit.get(20, TimeUnit.SECONDS).getJob().getJobId().isEmpty());
        assertTrue(System.nanoTime() - begun < Duration.ofSeconds(2).toNanos());
    }

    private static SubmitResponse submitIn(Context context, ManagedChannel channel) {
        try {
            return context.call(() -> Pacenote.submit(channel, sleeps(0, ""), Server.SECONDS));
        } catch (RuntimeException error) {
            throw error;
        } catch (Exception error) {
            throw new AssertionError(error);
        }
    }
}
