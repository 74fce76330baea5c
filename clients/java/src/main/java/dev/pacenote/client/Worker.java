package dev.pacenote.client;

import dev.pacenote.v1.Cancelled;
import dev.pacenote.v1.ExtendLeasesRequest;
import dev.pacenote.v1.FinishRequest;
import dev.pacenote.v1.HandBack;
import dev.pacenote.v1.LeaseRequest;
import dev.pacenote.v1.LeaseResponse;
import dev.pacenote.v1.LeaseStatus;
import dev.pacenote.v1.LeasedJob;
import dev.pacenote.v1.Payload;
import dev.pacenote.v1.ReportRequest;
import dev.pacenote.v1.ReportResponse;
import dev.pacenote.v1.WorkerServiceGrpc;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;

/**
 * Leases jobs, runs a handler for each in a thread of its own, and tells how it goes, until it is drained.
 *
 * <p>What a handler tells is stored once and in order, however often the connection breaks; of a job that has gone to
 * somebody else nothing is told. A handler whose job is to stop is interrupted, and cannot be stopped otherwise: it has
 * to heed that, or {@link Attempt#isCancelled} and {@link Attempt#isLost}.
 */
public final class Worker implements AutoCloseable {
    private static final System.Logger LOG = System.getLogger(Worker.class.getName());
    private static final Duration GRACE = Duration.ofSeconds(20);
    private static final Duration WAIT = Duration.ofSeconds(30);
    // What a drain takes beyond its grace where the server does not answer. Chosen.
    private static final Duration HAND_BACK = Duration.ofSeconds(5);
    // How long a drain waits for work that may be on its way. Chosen: where work waits, it comes in milliseconds.
    private static final Duration ON_ITS_WAY = Duration.ofMillis(500);
    // A server keeps no more of an error's detail: 16 KiB.
    private static final int DETAIL = 16_384;

    private final ManagedChannel channel;
    private final Map<String, Handler> handlers;
    private final LeaseRequest wanted;
    private final int concurrency;
    /** Where handlers run. A daemon thread is made for each at need, and ends when it has had no work for a minute. */
    private final ExecutorService threads = Executors.newCachedThreadPool(work -> daemon(work, "pacenote-handler"));
    /** A third of the term: when leases are renewed. */
    private final long beat;
    /** How long a lease surely holds, from its claim or when a renewal was sent: its term without a margin. */
    private final long hold;
    /** Ends when the drain is done, and with it every call. */
    private final Context.CancellableContext life = Context.ROOT.withCancellation();
    // Guarded by this:
    private final Set<Attempt> running = new HashSet<>();
    /** The call of Lease that is under way, until each job of its answer has begun or was handed back. */
    private Context.CancellableContext poll;
    private boolean isDraining;

    private Worker(Builder builder) {
        channel = builder.channel;
        handlers = Map.copyOf(builder.handlers);
        concurrency = builder.concurrency;
        long term = builder.lease.toNanos();
        beat = term / 3;
        hold = term - Math.min(TimeUnit.SECONDS.toNanos(2), term / 5);
        wanted = LeaseRequest.newBuilder()
                .setWorkerId(builder.workerId)
                .addAllTypes(builder.handlers.keySet())
                .addAllQueues(builder.queues)
                .setLease(Calls.proto(builder.lease))
                .setWait(Calls.proto(WAIT))
                .build();
    }

    /**
     * A worker to be.
     *
     * @param channel to the server
     * @return the builder
     */
    public static Builder builder(ManagedChannel channel) {
        return new Builder(channel);
    }

    /**
     * Works until {@link #drain} or {@link #close} is done; to be called once. An interrupt drains, and is kept.
     *
     * @throws StatusRuntimeException where the server refuses to give work for good; what runs was drained
     */
    public void run() {
        daemon(this::keepLeases, "pacenote-leases").start();
        try {
            leaseAll();
        } finally {
            boolean interrupted = Thread.interrupted();
            if (!isDraining()) {
                drain(GRACE);
            }
            while (!await(life::isCancelled, Long.MAX_VALUE)) {
                interrupted |= Thread.interrupted();
            }
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /**
     * Leases no more, waits for what runs, and hands back what has not ended then; its handlers are interrupted. An
     * interrupt of this thread ends the wait, and is kept. Whoever runs the worker goes on once this is done.
     *
     * @param grace how long to wait; where the server does not answer, it may take 5 s more
     */
    public void drain(Duration grace) {
        Context.CancellableContext call;
        synchronized (this) {
            isDraining = true;
            notifyAll();
            call = poll;
        }
        // An answer that a cancel crosses on its way is heard by nobody: its jobs would be held, and charged, until
        // their leases end. What comes in time is handed back.
        await(() -> poll == null, ON_ITS_WAY.toNanos());
        cancel(call);
        await(() -> poll == null && running.isEmpty(), grace.toNanos());
        List<Attempt> left;
        synchronized (this) {
            left = new ArrayList<>(running);
        }
        long end = System.nanoTime() + HAND_BACK.toNanos();
        left.forEach(attempt -> handBack(attempt, Duration.ofNanos(end - System.nanoTime())));
        // What is being told by others, of what they had ended before.
        await(() -> poll == null && running.isEmpty(), end - System.nanoTime());
        life.cancel(null);
        synchronized (this) {
            notifyAll();
        }
    }

    /** Drains with a grace of 20 s. */
    @Override
    public void close() {
        drain(GRACE);
    }

    private static Thread daemon(Runnable work, String name) {
        Thread thread = new Thread(work, name);
        thread.setDaemon(true);
        return thread;
    }

    synchronized boolean isDraining() {
        return isDraining;
    }

    /**
     * Waits until something of what is guarded by this has come about. Answers false if the time is over before, or if
     * the thread is interrupted, which is kept.
     */
    private synchronized boolean await(BooleanSupplier condition, long nanos) {
        long begun = System.nanoTime();
        try {
            while (!condition.getAsBoolean()) {
                long left = nanos - (System.nanoTime() - begun);
                if (left <= 0) {
                    return false;
                }
                TimeUnit.NANOSECONDS.timedWait(this, left);
            }
            return true;
        } catch (InterruptedException interrupt) {
            Thread.currentThread().interrupt();
            return false;
        }
    }

    private void leaseAll() {
        Calls.Backoff backoff = new Calls.Backoff();
        for (LeaseRequest request = nextRequest(); request != null; request = nextRequest()) {
            long pause = 0;
            try {
                long sent = System.nanoTime();
                LeaseResponse answer = Calls.once(poll, channel, WorkerServiceGrpc.getLeaseMethod(), request,
                        WAIT.plus(Calls.TIMEOUT).toNanos());
                com.google.protobuf.Duration waited = answer.getWaited();
                long claimed = sent + TimeUnit.SECONDS.toNanos(waited.getSeconds()) + waited.getNanos();
                begin(answer.getLeasedJobsList(), claimed);
                if (answer.getDrain()) { // The server's, not ours: it says so at once, as long as it is there.
                    pause = backoff.nanos(null);
                } else {
                    backoff.reset();
                }
            } catch (StatusRuntimeException error) {
                if (!Calls.mayHeal(error.getStatus())) {
                    throw error;
                }
                pause = backoff.nanos(error);
                channel.resetConnectBackoff();
            } finally {
                synchronized (this) {
                    cancel(poll);
                    poll = null;
                    notifyAll();
                }
            }
            await(() -> isDraining, pause);
        }
    }

    /** What to ask for, once there is room; null once there is no more to be asked for. */
    private synchronized LeaseRequest nextRequest() {
        await(() -> isDraining || running.size() < concurrency, Long.MAX_VALUE);
        if (isDraining || Thread.currentThread().isInterrupted()) {
            return null;
        }
        poll = life.withCancellation();
        return wanted.toBuilder().setMaxJobs(concurrency - running.size()).build();
    }

    private static void cancel(Context.CancellableContext call) {
        if (call != null) {
            call.cancel(null);
        }
    }

    private void begin(List<LeasedJob> jobs, long claimed) {
        for (LeasedJob leased : jobs) {
            Attempt attempt = new Attempt(channel, leased, this::isDraining);
            attempt.holdsUntil(claimed + hold);
            boolean mayBegin;
            synchronized (this) {
                // What arrives so late that its lease may be over is handed back as well.
                mayBegin = !isDraining && attempt.left(System.nanoTime()) > 0 && running.add(attempt);
            }
            if (mayBegin) {
                threads.execute(() -> work(attempt));
            } else {
                handBack(attempt, HAND_BACK);
            }
        }
    }

    private void work(Attempt attempt) {
        FinishRequest.Builder outcome = FinishRequest.newBuilder();
        if (attempt.enter()) {
            outcome = outcome(handlers.get(attempt.job().getType()), attempt);
            attempt.leave();
        }
        if (attempt.isCancelled()) {
            outcome = FinishRequest.newBuilder().setCancelled(Cancelled.getDefaultInstance());
        }
        end(attempt, outcome, Calls.FOREVER);
    }

    /** Runs the handler, and says how it ended. */
    private static FinishRequest.Builder outcome(Handler handler, Attempt attempt) {
        Object value;
        try {
            value = handler.handle(attempt);
        } catch (Outcome outcome) {
            return outcome.request.toBuilder();
        } catch (Throwable error) { // Errors as well: they would end this thread alone, and say nothing.
            StringWriter trace = new StringWriter();
            error.printStackTrace(new PrintWriter(trace, true));
            FinishRequest.Builder request = Outcome.error("HANDLER_ERROR", error.toString(), true);
            int length = Math.min(DETAIL, trace.getBuffer().length());
            request.getErrorBuilder().setDetail(trace.getBuffer().substring(0, length));
            return request;
        }
        try {
            return FinishRequest.newBuilder().setResult(Payloads.of(value));
        } catch (Throwable error) { // Errors as well: a list that has itself as an element.
            return Outcome.error("RESULT_INVALID", "the result is no JSON: " + error, false);
        }
    }

    private void handBack(Attempt attempt, Duration limit) {
        end(attempt, FinishRequest.newBuilder().setHandBack(HandBack.getDefaultInstance()), limit);
    }

    /** Tells the end of an attempt, the first one that comes. It is renewed until that is answered. */
    private void end(Attempt attempt, FinishRequest.Builder outcome, Duration limit) {
        if (!attempt.end()) {
            return;
        }
        try {
            if (!attempt.wasLost()) {
                finish(outcome.setLeaseToken(attempt.leaseToken()), limit);
            }
        } catch (StatusRuntimeException error) {
            String message = "the end of job " + attempt.job().getJobId() + " was not taken in";
            LOG.log(System.Logger.Level.WARNING, message, error);
        } finally {
            synchronized (this) {
                running.remove(attempt);
                notifyAll();
            }
        }
    }

    private void finish(FinishRequest.Builder outcome, Duration limit) {
        try {
            Calls.untilAnswered(life, channel, WorkerServiceGrpc.getFinishMethod(), outcome.build(), limit, false);
        } catch (StatusRuntimeException error) {
            if (error.getStatus().getCode() != Status.Code.INVALID_ARGUMENT) {
                throw error;
            }
            // A result that is too large, a reason that is none: said as an error, so that the job does not hang.
            String reason = outcome.hasResult() ? "RESULT_INVALID" : "HANDLER_ERROR";
            FinishRequest refused = Outcome.error(reason, String.valueOf(error.getStatus().getDescription()), false)
                    .setLeaseToken(outcome.getLeaseToken()).build();
            Calls.untilAnswered(life, channel, WorkerServiceGrpc.getFinishMethod(), refused, limit, false);
        }
    }

    /** Renews all leases in time, hears which jobs are to stop, and ends attempts whose lease is over or lost. */
    private void keepLeases() {
        Calls.Backoff backoff = new Calls.Backoff();
        long pause = beat;
        while (!await(life::isCancelled, pause)) {
            List<Attempt> attempts;
            synchronized (this) {
                attempts = new ArrayList<>(running);
            }
            long now = System.nanoTime();
            attempts.stream().filter(attempt -> attempt.left(now) <= 0).forEach(Attempt::lose);
            attempts.removeIf(attempt -> !attempt.isKept());
            long next = attempts.isEmpty() ? now + beat : renew(attempts, backoff);
            pause = Math.min(next, now + left(attempts, now)) - System.nanoTime();
        }
    }

    /** How long all of these leases surely hold, in nanoseconds. */
    private long left(List<Attempt> attempts, long now) {
        return attempts.stream().mapToLong(attempt -> attempt.left(now)).reduce(beat, Math::min);
    }

    /** Renews leases once. Answers when it is time for the next try, by {@link System#nanoTime}. */
    private long renew(List<Attempt> attempts, Calls.Backoff backoff) {
        long sent = System.nanoTime();
        // Room for another try before the leases are over, and no call that waits longer than they hold.
        long timeout = Math.min(left(attempts, sent), Math.min(beat / 2, Calls.TIMEOUT.toNanos()));
        ExtendLeasesRequest.Builder request = ExtendLeasesRequest.newBuilder();
        attempts.forEach(attempt -> request.addLeaseTokens(attempt.leaseToken()));
        try {
            List<LeaseStatus> leases = Calls.once(
                    life, channel, WorkerServiceGrpc.getExtendLeasesMethod(), request.build(), timeout).getLeasesList();
            backoff.reset();
            for (int index = 0; index < Math.min(attempts.size(), leases.size()); index++) {
                LeaseStatus lease = leases.get(index);
                if (lease.getLost()) {
                    attempts.get(index).lose();
                }
                if (!lease.hasLeaseExpireTime()) { // Lost, or the server cannot say how it stands: not renewed.
                    continue;
                }
                attempts.get(index).holdsUntil(sent + hold);
                attempts.get(index).hear(lease.getCancelRequested(), lease.getCancelReason());
            }
        } catch (RuntimeException error) { // Whatever an interceptor throws: without this thread, leases are not kept.
            if (Calls.mayHeal(Status.fromThrowable(error))) {
                channel.resetConnectBackoff();
                return System.nanoTime() + Math.min(backoff.nanos(error), beat / 2);
            }
            // One token that the server does not know, as after its store was replaced, must not take the others along.
            attempts.forEach(this::renew);
        }
        return sent + beat;
    }

    private void renew(Attempt attempt) {
        long sent = System.nanoTime();
        try {
            ReportRequest request = ReportRequest.newBuilder().setLeaseToken(attempt.leaseToken()).build();
            ReportResponse lease = Calls.once(life, channel, WorkerServiceGrpc.getReportMethod(), request, beat / 2);
            attempt.holdsUntil(sent + hold);
            attempt.hear(lease.getCancelRequested(), lease.getCancelReason());
        } catch (RuntimeException error) {
            if (!Calls.mayHeal(Status.fromThrowable(error))) {
                attempt.lose();
            }
        }
    }

    /** What a {@link Worker} is made of. At least one handler is needed. */
    public static final class Builder {
        private final ManagedChannel channel;
        private final Map<String, Handler> handlers = new LinkedHashMap<>();
        private String workerId = "java-" + ProcessHandle.current().pid() + "-" + UUID.randomUUID();
        private List<String> queues = List.of();
        private int concurrency = 1;
        private Duration lease = Duration.ofSeconds(15);

        private Builder(ManagedChannel channel) {
            this.channel = channel;
        }

        /**
         * Jobs of a type are done by a handler.
         *
         * @param type a name
         * @param handler is called by several threads at once, where the concurrency is more than 1
         * @return this
         */
        public Builder handler(String type, Handler handler) {
            handlers.put(type, handler);
            return this;
        }

        /**
         * Shown as {@code Job.worker_id}. Default: one that is unique, with the process's id.
         *
         * @param workerId 1 to 1,024 bytes, best unique for a process
         * @return this
         */
        public Builder workerId(String workerId) {
            this.workerId = workerId;
            return this;
        }

        /**
         * Where its jobs may wait. Default: every queue.
         *
         * @param queues at most 100 names
         * @return this
         */
        public Builder queues(String... queues) {
            this.queues = List.of(queues);
            return this;
        }

        /**
         * How many jobs it has at once. Default 1.
         *
         * @param concurrency 1 to 1,000
         * @return this
         */
        public Builder concurrency(int concurrency) {
            if (concurrency < 1 || concurrency > 1_000) {
                throw new IllegalArgumentException("concurrency is " + concurrency + "; it may be 1 to 1000");
            }
            this.concurrency = concurrency;
            return this;
        }

        /**
         * How long a job stays with a worker that fell silent; heartbeats go out after a third of it. Default 15 s.
         *
         * @param lease 5 s to 5 min
         * @return this
         */
        public Builder lease(Duration lease) {
            this.lease = lease;
            return this;
        }

        /**
         * The worker, which begins with {@link Worker#run}.
         *
         * @return the worker
         */
        public Worker build() {
            return new Worker(this);
        }
    }
}
