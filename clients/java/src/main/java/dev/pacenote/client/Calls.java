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

/** Calls that are made again until they are answered. Times are in nanoseconds. */
final class Calls {
    /** Deadline of one unary call: without one, it waits for a dead network for ever. */
    static final long TIMEOUT = TimeUnit.SECONDS.toNanos(10);
    static final long FOREVER = Long.MAX_VALUE;
    // What may heal, by the table in docs/protocol.md. All else stays as it is however often one asks.
    private static final Set<Status.Code> TRANSIENT = EnumSet.of(
            Status.Code.UNAVAILABLE, Status.Code.RESOURCE_EXHAUSTED, Status.Code.DEADLINE_EXCEEDED,
            Status.Code.CANCELLED, Status.Code.INTERNAL, Status.Code.UNKNOWN);

    private Calls() {}

    /** Also for what an interceptor throws, which is UNKNOWN. */
    static boolean mayHeal(Throwable error) {
        return TRANSIENT.contains(Status.fromThrowable(error).getCode());
    }

    /** Makes a call in a context, which ends it as well. */
    static <Q, A> A once(
            Context context, ManagedChannel channel, MethodDescriptor<Q, A> method, Q request, long timeout) {
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(timeout, TimeUnit.NANOSECONDS);
        Context previous = context.attach();
        try {
            return ClientCalls.blockingUnaryCall(channel, method, options, request);
        } finally {
            context.detach(previous);
        }
    }

    /**
     * Makes a call that may be repeated until it is answered. Throws the last error where that cannot heal, where the
     * next try would be past the limit, and once the context has ended. An interrupt is kept for later: what was sent
     * might be stored, and whoever is interrupted would not know.
     */
    static <Q, A> A untilAnswered(
            Context context, ManagedChannel channel, MethodDescriptor<Q, A> method, Q request, long limit) {
        Backoff backoff = new Backoff();
        long end = System.nanoTime() + limit;
        boolean interrupted = false;
        try {
            while (true) {
                interrupted |= Thread.interrupted();
                long pause;
                try {
                    return once(context, channel, method, request, Math.min(end - System.nanoTime(), TIMEOUT));
                } catch (StatusRuntimeException error) {
                    pause = backoff.next(error);
                    if (!mayHeal(error) || context.isCancelled() || end - System.nanoTime() <= pause) {
                        throw error;
                    }
                }
                try {
                    pause(context, channel, pause);
                } catch (InterruptedException interrupt) {
                    interrupted = true;
                }
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /** Waits until it is time to try again, or until the context ends. */
    static void pause(Context context, ManagedChannel channel, long time) throws InterruptedException {
        // The channel has a backoff of its own, of up to 2 min: it must not be the longer one.
        channel.resetConnectBackoff();
        CountDownLatch ended = new CountDownLatch(1);
        Context.CancellationListener listener = over -> ended.countDown();
        context.addListener(listener, Runnable::run);
        try {
            ended.await(time, TimeUnit.NANOSECONDS);
        } finally {
            context.removeListener(listener);
        }
    }

    static com.google.protobuf.Duration proto(Duration duration) {
        return com.google.protobuf.Duration.newBuilder()
                .setSeconds(duration.getSeconds()).setNanos(duration.getNano()).build();
    }

    static long nanos(com.google.protobuf.Duration duration) {
        return TimeUnit.SECONDS.toNanos(duration.getSeconds()) + duration.getNanos();
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
        long next(Throwable error) {
            long jitter = ThreadLocalRandom.current().nextLong(ceiling);
            ceiling = Math.min(2 * ceiling, LONGEST);
            return jitter + (error == null ? 0 : asked(error));
        }

        private static long asked(Throwable error) {
            try {
                com.google.rpc.Status status = StatusProto.fromThrowable(error);
                for (Any detail : status == null ? List.<Any>of() : status.getDetailsList()) {
                    if (detail.is(RetryInfo.class)) {
                        return nanos(detail.unpack(RetryInfo.class).getRetryDelay());
                    }
                }
            } catch (InvalidProtocolBufferException | IllegalArgumentException malformed) {
                // Details that are not of this status: a proxy's work.
            }
            return 0;
        }
    }
}
