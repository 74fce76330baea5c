package dev.pacenote.client;

import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobServiceGrpc;
import dev.pacenote.v1.SubmitRequest;
import dev.pacenote.v1.SubmitResponse;
import dev.pacenote.v1.WatchJobRequest;
import dev.pacenote.v1.WatchJobResponse;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.ManagedChannel;
import io.grpc.StatusException;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.BlockingClientCall;
import java.time.Duration;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;

/** Connects to a server, submits jobs and watches them, over however many broken connections. */
public final class Pacenote {
    // A stream that nobody reads stops the server once so much is on its way. grpc-java refills the connection's
    // window whether streams are read or not, so that it need not be larger.
    private static final int STREAM_WINDOW_BYTES = 256 * 1024;

    private Pacenote() {}

    /**
     * A channel to a server, with what docs/protocol.md asks of a client: keepalive of 30 s and 10 s, also without
     * calls, and a stream window of 256 KiB that does not grow. It connects with the first call.
     *
     * @param address host and port, as {@code 127.0.0.1:7430}
     * @param interceptors of all calls
     * @return the channel, in plain text: servers have no TLS yet
     */
    public static ManagedChannel connect(String address, ClientInterceptor... interceptors) {
        return NettyChannelBuilder.forTarget(address)
                .usePlaintext()
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(10, TimeUnit.SECONDS)
                .keepAliveWithoutCalls(true)
                // Not initialFlowControlWindow, with which the window would grow.
                .flowControlWindow(STREAM_WINDOW_BYTES)
                .intercept(interceptors)
                .build();
    }

    /**
     * Makes one job, as {@link #submit(ManagedChannel, SubmitRequest, Duration)} does within 60 s.
     *
     * @param channel to the server
     * @param type a job type that the server serves
     * @param input what the job works on, as {@link Payloads#of} takes it; null for none
     * @return the job
     */
    public static SubmitResponse submit(ManagedChannel channel, String type, Object input) {
        SubmitRequest request = SubmitRequest.newBuilder().setType(type).setInput(Payloads.of(input)).build();
        return submit(channel, request, Duration.ofSeconds(60));
    }

    /**
     * Makes one job: sends the request again, with backoff and jitter, until it is answered. Each try has a deadline
     * of 10 s. Without an idempotency key it gets one of its own; give it yours, and another process may repeat it.
     *
     * @param channel to the server
     * @param request the job
     * @param deadline how long to try; the current {@link Context} ends it earlier, and an interrupt does not
     * @return the job
     * @throws io.grpc.StatusRuntimeException the last error, where asking again does not help or the time is over
     */
    public static SubmitResponse submit(ManagedChannel channel, SubmitRequest request, Duration deadline) {
        SubmitRequest keyed = request.getIdempotencyKey().isEmpty()
                ? request.toBuilder().setIdempotencyKey(UUID.randomUUID().toString()).build()
                : request;
        return Calls.untilAnswered(
                Context.current(), channel, JobServiceGrpc.getSubmitMethod(), keyed, deadline.toNanos());
    }

    /**
     * Watches a job from the beginning of its log to its end, as
     * {@link #watch(ManagedChannel, WatchJobRequest, Consumer)} does.
     *
     * @param channel to the server
     * @param jobId as {@link #submit} answered it
     * @param each is given every message
     * @return the job at its end, with result or error
     * @throws InterruptedException once this thread is interrupted
     */
    public static Job watch(ManagedChannel channel, String jobId, Consumer<WatchJobResponse> each)
            throws InterruptedException {
        return watch(channel, WatchJobRequest.newBuilder().setJobId(jobId).setAfterSequence(0).build(), each);
    }

    /**
     * Watches a job to its end: each event once and in order, however many connections break and servers are started
     * again meanwhile. Store a message's {@code through_sequence} with what you made of it, and a crash of yours loses
     * and doubles nothing either.
     *
     * <p>It ends early by an interrupt, by the current {@link Context}, and with whatever {@code each} throws. None of
     * them touches the job.
     *
     * @param channel to the server
     * @param request with the {@code through_sequence} to go on from as {@code after_sequence}: 0 for all that is
     *     kept, absent for a snapshot and what comes after it
     * @param each is given every message, in this thread; the last one is the snapshot with the result
     * @return that snapshot
     * @throws InterruptedException once this thread is interrupted
     * @throws io.grpc.StatusRuntimeException where asking again does not help, or the context has ended
     */
    public static Job watch(ManagedChannel channel, WatchJobRequest request, Consumer<WatchJobResponse> each)
            throws InterruptedException {
        WatchJobRequest.Builder next = request.toBuilder();
        if (!next.hasHeartbeatInterval()) {
            next.setHeartbeatInterval(Calls.proto(Duration.ofSeconds(15)));
        }
        long silent = 3 * Calls.nanos(next.getHeartbeatInterval());
        Calls.Backoff backoff = new Calls.Backoff();
        while (true) {
            Exception broken = null; // Stays so with an OK without the final snapshot, which is a proxy's.
            BlockingClientCall<?, WatchJobResponse> stream =
                    JobServiceGrpc.newBlockingV2Stub(channel).watchJob(next.build());
            try {
                // Silence is counted while this waits: however long the caller takes with a message is none.
                for (WatchJobResponse message; (message = stream.read(silent, TimeUnit.NANOSECONDS)) != null; ) {
                    backoff.reset();
                    each.accept(message);
                    next.setAfterSequence(message.getThroughSequence());
                    // Not the OK after it: were that lost, the snapshot would come twice.
                    if (isEnd(message)) {
                        return message.getSnapshot();
                    }
                }
            } catch (StatusException | TimeoutException error) {
                broken = error;
            } finally {
                stream.cancel("it is silent, or nobody listens any more", null);
            }
            if (Context.current().isCancelled()) {
                throw Contexts.statusFromCancelled(Context.current()).asRuntimeException();
            }
            if (broken instanceof StatusException error && !Calls.mayHeal(error)) {
                throw error.getStatus().asRuntimeException(error.getTrailers());
            }
            Calls.pause(Context.current(), channel, backoff.next(broken));
        }
    }

    /** The last message. After a gap, a job that is over is shown with more of its log to come. */
    private static boolean isEnd(WatchJobResponse message) {
        Job snapshot = message.getSnapshot();
        return snapshot.hasEndTime() && message.getThroughSequence() >= snapshot.getLastSequence();
    }
}
