package dev.pacenote.client;

import dev.pacenote.v1.JobServiceGrpc;
import dev.pacenote.v1.SubmitRequest;
import dev.pacenote.v1.SubmitResponse;
import dev.pacenote.v1.WatchJobRequest;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.time.Duration;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

/** Connects to a server, submits jobs and watches them, over however many broken connections. */
public final class Pacenote {
    // A stream that nobody reads stops the server once so much is on its way. grpc-java refills the connection's
    // window whether streams are read or not, so that it need not be larger.
    private static final int STREAM_WINDOW_BYTES = 256 * 1024;

    private Pacenote() {}

    /**
     * A channel to a server, with what docs/protocol.md asks of a client. It connects with the first call.
     *
     * @param address host and port, as {@code 127.0.0.1:7430}
     * @return the channel, in plain text: servers have no TLS yet
     */
    public static ManagedChannel connect(String address) {
        return channelBuilder(address).build();
    }

    /**
     * What {@link #connect} builds a channel from: for interceptors and settings of your own.
     *
     * @param address host and port, as {@code 127.0.0.1:7430}
     * @return with keepalive of 30 s and 10 s, also without calls, and a stream window of 256 KiB that does not grow
     */
    public static ManagedChannelBuilder<?> channelBuilder(String address) {
        return NettyChannelBuilder.forTarget(address)
                .usePlaintext()
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(10, TimeUnit.SECONDS)
                .keepAliveWithoutCalls(true)
                // Not initialFlowControlWindow, with which the window would grow.
                .flowControlWindow(STREAM_WINDOW_BYTES);
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
     * @param deadline how long to try; the current {@link Context} and an interrupt end it earlier
     * @return the job
     * @throws io.grpc.StatusRuntimeException the last error, where asking again does not help or the time is over
     */
    public static SubmitResponse submit(ManagedChannel channel, SubmitRequest request, Duration deadline) {
        SubmitRequest keyed = request.getIdempotencyKey().isEmpty()
                ? request.toBuilder().setIdempotencyKey(UUID.randomUUID().toString()).build()
                : request;
        return Calls.untilAnswered(
                Context.current(), channel, JobServiceGrpc.getSubmitMethod(), keyed, deadline, true);
    }

    /**
     * Watches a job from the beginning of its log to its end.
     *
     * @param channel to the server
     * @param jobId as {@link #submit} answered it
     * @return the watch, to be closed
     */
    public static Watch watch(ManagedChannel channel, String jobId) {
        return watch(channel, WatchJobRequest.newBuilder().setJobId(jobId).setAfterSequence(0).build());
    }

    /**
     * Watches a job to its end.
     *
     * @param channel to the server
     * @param request with the {@code through_sequence} to go on from as {@code after_sequence}: 0 for all that is
     *     kept, absent for a snapshot and what comes after it
     * @return the watch, to be closed. It belongs to the current {@link Context}, which ends it as well
     */
    public static Watch watch(ManagedChannel channel, WatchJobRequest request) {
        return new Watch(channel, request);
    }
}
