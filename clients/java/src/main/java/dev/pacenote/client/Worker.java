package dev.pacenote.client;

import dev.pacenote.v1.Cancelled;
import dev.pacenote.v1.ExtendLeasesRequest;
import dev.pacenote.v1.FinishRequest;
import dev.pacenote.v1.HandBack;
import dev.pacenote.v1.LeaseRequest;
import dev.pacenote.v1.LeaseResponse;
import dev.pacenote.v1.LeaseStatus;
import dev.pacenote.v1.LeasedJob;
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
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
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
    // What a drain takes beyond its grace where the server does not answer. Chosen.
    private static final Duration HAND_BACK = Duration.ofSeconds(5);
    // How long a drain waits for work that may be on its way. Chosen: where work waits, it comes in milliseconds.
    private static final Duration ON_ITS_WAY = Duration.ofMillis(500);
    // How late an attempt may be stopped. Chosen: a tenth of the shortest margin.
    private static final Duration TICK = Duration.ofMillis(100);
    // A server keeps no more of an error's detail: 16 KiB.
    private static final int DETAIL = 16_384;

    final ManagedChannel channel;
    /** How long a lease surely holds, in nanoseconds: its term, and a margin less. */
    final long hold;
    private final Map<String, Handler> handlers;
    private final LeaseRequest wanted;
    /** A third of the term, in nanoseconds: when leases are renewed. */
    private final long beat;
    /** A daemon thread is made for each handler at need, and ends when it has had no work for a minute. */
    private final ExecutorService threads = Executors.newCachedThreadPool(work -> {
        Thread thread = new Thread(work, "pacenote-worker");
        thread.setDaemon(true);
        return thread;
    });
    /** Ends when the drain is done, and with it every call. */
    private final Context.CancellableContext life = Context.ROOT.withCancellation();
    private final CountDownLatch isOver = new CountDownLatch(1);
    private volatile Throwable failure;
    // Guarded by this:
    private final Set<Attempt> running = new HashSet<>();
    /** The call of Lease that is under way, until each job of its answer is among the running ones. */
    private Context.CancellableContext poll;
    private boolean isDraining;

    /**
     * A worker for every queue, with leases of 15 s.
     *
     * @param channel to the server
     * @param handlers by the type of the jobs that they do, at least one; called by several threads at once
     * @param concurrency how many jobs it has at once, 1 to 1,000
     */
    public Worker(ManagedChannel channel, Map<String, Handler> handlers, int concurrency) {
        this(channel, handlers, LeaseRequest.newBuilder().setMaxJobs(concurrency).build());
    }

    /**
     * A worker that asks for what a request says.
     *
     * @param channel to the server
     * @param handlers by the type of the jobs that they do, at least one; called by several threads at once
     * @param wanted with {@code max_jobs} as how many jobs it has at once, at least 1. Where they are not set,
     *     {@code worker_id} is unique, {@code queues} are all, {@code lease} is 15 s and {@code wait} 30 s
     */
    public Worker(ManagedChannel channel, Map<String, Handler> handlers, LeaseRequest wanted) {
        this.channel = channel;
        this.handlers = Map.copyOf(handlers);
        String workerId = "java-" + ProcessHandle.current().pid() + "-" + UUID.randomUUID();
        this.wanted = wanted.toBuilder()
                .setWorkerId(wanted.getWorkerId().isEmpty() ? workerId : wanted.getWorkerId())
                .clearTypes().addAllTypes(this.handlers.keySet())
                .setMaxJobs(Math.max(1, wanted.getMaxJobs()))
                .setLease(wanted.hasLease() ? wanted.getLease() : Calls.proto(Duration.ofSeconds(15)))
                .setWait(wanted.hasWait() ? wanted.getWait() : Calls.proto(Duration.ofSeconds(30)))
                .build();
        long term = Calls.nanos(this.wanted.getLease());
        beat = term / 3;
        hold = term - Math.min(TimeUnit.SECONDS.toNanos(2), term / 5);
    }

    /**
     * Works until {@link #drain} or {@link #close} is done; to be called once. An interrupt drains, and is kept.
     *
     * @throws StatusRuntimeException where the server refuses to give work for good; what runs was drained
     */
    public void run() {
        threads.execute(this::leaseAll);
        threads.execute(this::keepLeases);
        threads.execute(this::stopLate);
        try {
            isOver.await();
        } catch (InterruptedException interrupt) {
            close();
            Thread.currentThread().interrupt();
        }
        if (failure != null) {
            throw Status.fromThrowable(failure).asRuntimeException(Status.trailersFromThrowable(failure));
        }
    }

    /**
     * Leases no more, waits for what runs, and hands back what has not ended then; its handlers are interrupted. An
     * interrupt of this thread is kept, and shortens nothing. Whoever runs the worker goes on once this is done.
     *
     * @param grace how long to wait; where the server does not answer, it may take 5 s more
     */
    public void drain(Duration grace) {
        synchronized (this) {
            isDraining = true;
            notifyAll();
        }
        // An answer that a cancel crosses on its way is heard by nobody: its jobs would be held, and charged, until
        // their leases end. What comes in time is handed back.
        if (!await(() -> poll == null, ON_ITS_WAY.toNanos())) {
            cancelPoll();
        }
        await(() -> poll == null && running.isEmpty(), grace.toNanos());
        attempts().forEach(attempt -> threads.execute(() -> end(attempt, attempt.isLost() ? null : handBack())));
        await(() -> poll == null && running.isEmpty(), HAND_BACK.toNanos());
        life.cancel(null);
        isOver.countDown();
    }

    /** Drains with a grace of 20 s. */
    @Override
    public void close() {
        drain(GRACE);
    }

    synchronized boolean isDraining() {
        return isDraining;
    }

    private synchronized List<Attempt> attempts() {
        return new ArrayList<>(running);
    }

    /**
     * Waits until something of what is guarded by this has come about. Answers false if the time is over before. An
     * interrupt is kept for later.
     */
    private synchronized boolean await(BooleanSupplier condition, long nanos) {
        long end = System.nanoTime() + nanos;
        boolean interrupted = false;
        for (long left = nanos; !condition.getAsBoolean() && left > 0; left = end - System.nanoTime()) {
            try {
                TimeUnit.NANOSECONDS.timedWait(this, left);
            } catch (InterruptedException interrupt) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
        return condition.getAsBoolean();
    }

    private void leaseAll() {
        Calls.Backoff backoff = new Calls.Backoff();
        try {
            for (LeaseRequest request = nextRequest(); request != null; request = nextRequest()) {
                await(() -> isDraining, lease(request, backoff));
            }
        } catch (Throwable error) { // Errors as well: without this thread, nothing would be done any more.
            failure = error;
            close();
        }
    }

    /** What to ask for, once there is room; null once there is no more to be asked for. */
    private synchronized LeaseRequest nextRequest() {
        await(() -> isDraining || running.size() < wanted.getMaxJobs(), Calls.FOREVER);
        if (isDraining) {
            return null;
        }
        poll = life.withCancellation();
        return wanted.toBuilder().setMaxJobs(wanted.getMaxJobs() - running.size()).build();
    }

    /** Leases once, and begins what comes. Answers how long to wait before the next time, in nanoseconds. */
    private long lease(LeaseRequest request, Calls.Backoff backoff) {
        try {
            long timeout = Calls.nanos(request.getWait()) + Calls.TIMEOUT;
            long sent = System.nanoTime();
            LeaseResponse answer = Calls.once(poll, channel, WorkerServiceGrpc.getLeaseMethod(), request, timeout);
            long claimed = sent + Calls.nanos(answer.getWaited());
            answer.getLeasedJobsList().forEach(leased -> begin(leased, claimed));
            if (answer.getDrain()) { // The server's, not ours: it says so at once, as long as it is there.
                return backoff.next(null);
            }
            backoff.reset();
            return 0;
        } catch (RuntimeException error) {
            if (!Calls.mayHeal(error)) {
                throw error;
            }
            channel.resetConnectBackoff();
            return backoff.next(error);
        } finally {
            cancelPoll();
            synchronized (this) {
                poll = null;
                notifyAll();
            }
        }
    }

    private synchronized void cancelPoll() {
        if (poll != null) {
            poll.cancel(null);
        }
    }

    private void begin(LeasedJob leased, long claimed) {
        Attempt attempt = new Attempt(this, leased, claimed);
        synchronized (this) {
            running.add(attempt);
        }
        threads.execute(() -> work(attempt));
    }

    private void work(Attempt attempt) {
        FinishRequest.Builder outcome = handBack(); // What comes while draining, or so late that its lease may be over.
        if (!isDraining() && !attempt.isLost()) {
            outcome = outcome(handlers.get(attempt.job().getType()), attempt);
            if (attempt.isLost()) {
                outcome = null;
            } else if (attempt.isCancelled()) {
                outcome = FinishRequest.newBuilder().setCancelled(Cancelled.getDefaultInstance());
            }
        }
        end(attempt, outcome);
    }

    /** Runs the handler, and says how it ended. */
    private static FinishRequest.Builder outcome(Handler handler, Attempt attempt) {
        Object value;
        try {
            value = attempt.run(handler);
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

    private static FinishRequest.Builder handBack() {
        return FinishRequest.newBuilder().setHandBack(HandBack.getDefaultInstance());
    }

    /** Ends an attempt, for the first one who does, and tells how, if at all. It is renewed until that is answered. */
    private void end(Attempt attempt, FinishRequest.Builder outcome) {
        if (!attempt.end()) {
            return;
        }
        try {
            if (outcome != null) {
                finish(outcome.setLeaseToken(attempt.leaseToken()));
            }
        } catch (StatusRuntimeException error) {
            LOG.log(System.Logger.Level.WARNING, "the end of job {0} was not taken in: {1}",
                    attempt.job().getJobId(), error.getMessage());
        } finally {
            synchronized (this) {
                running.remove(attempt);
                notifyAll();
            }
        }
    }

    private void finish(FinishRequest.Builder outcome) {
        try {
            Calls.untilAnswered(
                    life, channel, WorkerServiceGrpc.getFinishMethod(), outcome.build(), Calls.FOREVER);
        } catch (StatusRuntimeException error) {
            if (error.getStatus().getCode() != Status.Code.INVALID_ARGUMENT) {
                throw error;
            }
            // A result that is too large, a reason that is none: said as an error, so that the job does not hang.
            String reason = outcome.hasResult() ? "RESULT_INVALID" : "HANDLER_ERROR";
            FinishRequest refused = Outcome.error(reason, String.valueOf(error.getStatus().getDescription()), false)
                    .setLeaseToken(outcome.getLeaseToken()).build();
            Calls.untilAnswered(life, channel, WorkerServiceGrpc.getFinishMethod(), refused, Calls.FOREVER);
        }
    }

    /** Ends attempts whose lease may be over, by our own clock alone, whatever becomes of their renewals. */
    private void stopLate() {
        while (!await(life::isCancelled, TICK.toNanos())) {
            attempts().forEach(Attempt::isLost);
        }
    }

    /** Renews all leases in time, and hears which are lost and which jobs are to stop. */
    private void keepLeases() {
        Calls.Backoff backoff = new Calls.Backoff();
        for (long pause = beat; !await(life::isCancelled, pause); ) {
            long sent = System.nanoTime();
            try {
                renew(attempts().stream().filter(Attempt::isKept).toList());
                backoff.reset();
                pause = sent + beat - System.nanoTime();
            } catch (RuntimeException error) {
                channel.resetConnectBackoff();
                pause = Math.min(backoff.next(error), beat / 2);
            }
        }
    }

    /** Renews leases once. Throws what may heal. */
    private void renew(List<Attempt> attempts) {
        if (attempts.isEmpty()) {
            return;
        }
        ExtendLeasesRequest.Builder request = ExtendLeasesRequest.newBuilder();
        attempts.forEach(attempt -> request.addLeaseTokens(attempt.leaseToken()));
        long sent = System.nanoTime();
        try {
            // The term has to have room for a second try, and a third.
            long timeout = Math.min(beat / 2, Calls.TIMEOUT);
            List<LeaseStatus> leases = Calls.once(
                    life, channel, WorkerServiceGrpc.getExtendLeasesMethod(), request.build(), timeout).getLeasesList();
            for (int index = 0; index < attempts.size(); index++) {
                LeaseStatus lease = leases.get(index);
                if (lease.getLost()) {
                    attempts.get(index).lose();
                } else if (lease.hasLeaseExpireTime()) { // Without one, the server cannot say how it stands.
                    attempts.get(index).hear(sent, lease.getCancelRequested(), lease.getCancelReason());
                }
            }
        } catch (RuntimeException error) {
            if (Calls.mayHeal(error)) {
                throw error;
            }
            // One token that the server does not know, as after its store was replaced, must not take the others along.
            if (attempts.size() == 1) {
                attempts.get(0).lose();
            } else {
                attempts.forEach(attempt -> renew(List.of(attempt)));
            }
        }
    }
}
