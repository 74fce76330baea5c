package dev.pacenote.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.RetryInfo;
import io.grpc.CallOptions;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCalls;
import java.time.Duration;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** Calls that are made again until they are answered. */
final class Calls {
    /** Deadline of one unary call: without one, it waits for a dead network for ever. */
    static final Duration TIMEOUT = Duration.ofSeconds(10);
    /** No limit; a sum of it and a time does not overflow. */
    static final Duration FOREVER = Duration.ofDays(36_500);
    // What may heal, by the table in docs/protocol.md. All else stays as it is however often one asks.
    private static final Set<Status.Code> TRANSIENT = EnumSet.of(
            Status.Code.UNAVAILABLE, Status.Code.RESOURCE_EXHAUSTED, Status.Code.DEADLINE_EXCEEDED,
            Status.Code.CANCELLED, Status.Code.INTERNAL, Status.Code.UNKNOWN);

    private Calls() {}

    static boolean mayHeal(Status status) {
        return TRANSIENT.contains(status.getCode());
    }

    /** Makes a call in a context, which ends it as well. */
    static <Q, A> A once(
            Context context, ManagedChannel channel, MethodDescriptor<Q, A> method, Q request, long timeoutNanos) {
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(timeoutNanos, TimeUnit.NANOSECONDS);
        Context previous = context.attach();
        try {
            return ClientCalls.blockingUnaryCall(channel, method, options, request);
        } finally {
            context.detach(previous);
        }
    }

    /**
     * Makes a call that may be repeated until it is answered. Throws the last error where that cannot heal, where
     * the next try would be past the limit, once the context has ended and, where it is told to heed that, once
     * the thread is interrupted. Otherwise an interrupt is kept for later: the call goes on.
     */
    static <Q, A> A untilAnswered(
            Context context,
            ManagedChannel channel,
            MethodDescriptor<Q, A> method,
            Q request,
            Duration limit,
            boolean heedsInterrupts) {
        Backoff backoff = new Backoff();
        long end = System.nanoTime() + limit.toNanos();
        boolean interrupted = false;
        try {
            while (true) {
                interrupted |= !heedsInterrupts && Thread.interrupted();
                try {
                    long left = end - System.nanoTime();
                    return once(context, channel, method, request, Math.min(left, TIMEOUT.toNanos()));
                } catch (StatusRuntimeException error) {
                    long pause = backoff.nanos(error);
                    if (!mayHeal(error.getStatus()) || context.isCancelled() || end - System.nanoTime() <= pause) {
                        throw error;
                    }
                    try {
                        pause(context, channel, pause);
                    } catch (InterruptedException interrupt) {
                        interrupted = true;
                        if (heedsInterrupts) {
                            throw error;
                        }
                    }
                }
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /** Waits until it is time to try again, or until the context ends. */
    static void pause(Context context, ManagedChannel channel, long nanos) throws InterruptedException {
        // The channel has a backoff of its own, of up to 2 min: it must not be the longer one.
        channel.resetConnectBackoff();
        CountDownLatch ended = new CountDownLatch(1);
        Context.CancellationListener listener = over -> ended.countDown();
        context.addListener(listener, Runnable::run);
        try {
            ended.await(nanos, TimeUnit.NANOSECONDS);
        } finally {
            context.removeListener(listener);
        }
    }

    static com.google.protobuf.Duration proto(Duration duration) {
        return com.google.protobuf.Duration.newBuilder()
                .setSeconds(duration.getSeconds()).setNanos(duration.getNano()).build();
    }

    /** Waits between tries: uniform in 0 to 0.1 s, doubling to 30 s, and never less than the server asks for. */
    static final class Backoff {
        private static final long SHORTEST = TimeUnit.MILLISECONDS.toNanos(100);
        private static final long LONGEST = TimeUnit.SECONDS.toNanos(30);
        private long ceiling = SHORTEST;

        /** Begins again with the shortest wait. */
        void reset() {
            ceiling = SHORTEST;
        }

        /** How long to wait now; the error may tell what the server asks for, or be null. */
        long nanos(Throwable error) {
            long jitter = ThreadLocalRandom.current().nextLong(ceiling);
            ceiling = Math.min(2 * ceiling, LONGEST);
            return jitter + (error == null ? 0 : asked(error));
        }

        private static long asked(Throwable error) {
            try {
                com.google.rpc.Status status = StatusProto.fromThrowable(error);
                for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
                    if (detail.is(RetryInfo.class)) {
                        com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
                        return TimeUnit.SECONDS.toNanos(delay.getSeconds()) + delay.getNanos();
                    }
                }
            } catch (InvalidProtocolBufferException | IllegalArgumentException malformed) {
                // Details that are not of this status: a proxy's work.
            }
            return 0;
        }
    }
}
