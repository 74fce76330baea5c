package dev.pacenote.client;

import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobServiceGrpc;
import dev.pacenote.v1.WatchJobRequest;
import dev.pacenote.v1.WatchJobResponse;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.OptionalLong;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Every message of a job's watch until the job is over; the last one is the snapshot with the result.
 *
 * <p>Each event comes once and in order, however many connections break and servers are started again meanwhile. It
 * blocks while nothing happens, and stops with {@link #close}, by its {@link Context} or by an interrupt; none of them
 * touches the job. One thread at a time may iterate; any may close.
 */
public final class Watch implements Iterator<WatchJobResponse>, AutoCloseable {
    private final ManagedChannel channel;
    private final WatchJobRequest.Builder request;
    private final long silentNanos;
    private final Context.CancellableContext context = Context.current().withCancellation();
    private final Calls.Backoff backoff = new Calls.Backoff();
    private Stream stream;
    private WatchJobResponse ready;
    private volatile boolean isClosed;

    Watch(ManagedChannel channel, WatchJobRequest request) {
        this.channel = channel;
        this.request = request.toBuilder();
        if (!request.hasHeartbeatInterval()) {
            this.request.setHeartbeatInterval(Calls.proto(Duration.ofSeconds(15)));
        }
        com.google.protobuf.Duration heartbeat = this.request.getHeartbeatInterval();
        silentNanos = 3 * Duration.ofSeconds(heartbeat.getSeconds(), heartbeat.getNanos()).toNanos();
    }

    /**
     * Waits for the next message.
     *
     * @return false once the job is over, or the watch was closed
     * @throws StatusRuntimeException where asking again does not help, where the context has ended, or, as CANCELLED
     *     and with the interrupt kept, where the thread was interrupted. The watch is closed then
     */
    @Override
    public boolean hasNext() {
        try {
            while (ready == null && !isClosed) {
                receive();
            }
        } catch (InterruptedException interrupt) {
            close();
            Thread.currentThread().interrupt();
            throw Status.CANCELLED.withDescription("interrupted").withCause(interrupt).asRuntimeException();
        } catch (StatusRuntimeException error) {
            close();
            throw error;
        }
        return ready != null;
    }

    /**
     * The next message: waits for it as {@link #hasNext} does, and throws what that throws.
     *
     * @throws NoSuchElementException once the job is over, or the watch was closed
     */
    @Override
    public WatchJobResponse next() {
        if (!hasNext()) {
            throw new NoSuchElementException("the watch is over");
        }
        WatchJobResponse message = ready;
        ready = null;
        // Only here: what was received and not handed out is asked for again.
        request.setAfterSequence(message.getThroughSequence());
        Job snapshot = message.getSnapshot();
        // One that comes after a gap may be of a job that is over as well, with more of the log to follow.
        if (snapshot.hasEndTime() && message.getThroughSequence() >= snapshot.getLastSequence()) {
            close();
        }
        return message;
    }

    /**
     * What to store with what you made of the messages, to go on from as {@code after_sequence}.
     *
     * @return the {@code through_sequence} of the last message that {@link #next} gave; before that, what the watch
     *     began with; empty if it was to begin with a snapshot
     */
    public OptionalLong cursor() {
        return request.hasAfterSequence() ? OptionalLong.of(request.getAfterSequence()) : OptionalLong.empty();
    }

    /** Ends the watch, and not the job. */
    @Override
    public void close() {
        isClosed = true;
        context.cancel(null);
    }

    /** Makes a message ready, or waits until it is time for the next stream. */
    private void receive() throws InterruptedException {
        if (stream == null) {
            stream = new Stream();
        }
        // A message, the error with which the stream ended, or null: so long a silence is a dead stream. However long
        // the caller takes for a message is none.
        Object heard = stream.heard.poll(silentNanos, TimeUnit.NANOSECONDS);
        if (heard instanceof WatchJobResponse message) {
            ready = message;
            backoff.reset();
            stream.call.request(1);
            return;
        }
        stream.call.cancel("it is silent, or over", null);
        stream = null;
        if (isClosed) {
            return;
        }
        if (context.isCancelled()) {
            throw Contexts.statusFromCancelled(context).asRuntimeException();
        }
        StatusRuntimeException error = (StatusRuntimeException) heard;
        // OK without a final snapshot is a proxy's.
        if (error != null && !error.getStatus().isOk() && !Calls.mayHeal(error.getStatus())) {
            throw error;
        }
        Calls.pause(context, channel, backoff.nanos(error));
    }

    /** One stream of the watch. It holds one message at most: the next is asked for when that is taken. */
    private final class Stream extends ClientCall.Listener<WatchJobResponse> {
        private final BlockingQueue<Object> heard = new LinkedBlockingQueue<>();
        private ClientCall<WatchJobRequest, WatchJobResponse> call;

        Stream() {
            context.run(() -> call = channel.newCall(JobServiceGrpc.getWatchJobMethod(), CallOptions.DEFAULT));
            call.start(this, new Metadata());
            call.request(1);
            call.sendMessage(request.build());
            call.halfClose();
        }

        @Override
        public void onMessage(WatchJobResponse message) {
            heard.add(message);
        }

        @Override
        public void onClose(Status status, Metadata trailers) {
            heard.add(new StatusRuntimeException(status, trailers));
        }
    }
}
