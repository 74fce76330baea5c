package dev.pacenote.client;

import dev.pacenote.v1.Job;
import dev.pacenote.v1.LeasedJob;
import dev.pacenote.v1.LogLine;
import dev.pacenote.v1.OutputChunk;
import dev.pacenote.v1.Payload;
import dev.pacenote.v1.Progress;
import dev.pacenote.v1.ReportRequest;
import dev.pacenote.v1.ReportResponse;
import dev.pacenote.v1.WorkerEvent;
import dev.pacenote.v1.WorkerServiceGrpc;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * One attempt at a job: what a {@link Handler} gets.
 *
 * <p>Whatever it tells returns once the server has taken it in, and waits for a server that is away; an interrupt does
 * not end that. Any thread may tell; it goes out one by one. Once the lease is lost, all that it tells throws
 * {@link LeaseLostException}; a mistake, as a stream's name that is none, throws {@link StatusRuntimeException} with
 * INVALID_ARGUMENT.
 */
public final class Attempt {
    // In characters, of at most 3 bytes each: a chunk may have 1 MiB. Chosen: what a watch sends at once.
    private static final int CHUNK = 65_536;

    private final Worker worker;
    private final LeasedJob leased;
    /** Ends when the lease is lost or given back, and with it what is being told. */
    private final Context.CancellableContext held = Context.ROOT.withCancellation();
    private final AtomicBoolean hasEnded = new AtomicBoolean();
    private final Object inOrder = new Object();
    private long number;
    private volatile String cancelReason;
    private volatile long heldUntil;
    private Thread runner;

    /** Was claimed no earlier than then, by {@link System#nanoTime}. */
    Attempt(Worker worker, LeasedJob leased, long claimed) {
        this.worker = worker;
        this.leased = leased;
        heldUntil = claimed + worker.hold;
    }

    /** The job as it was leased, with input and checkpoint. Its id is the key for side effects. */
    public Job job() {
        return leased.getJob();
    }

    /** The job's input, as {@link Payloads#value} reads it; null where there is none. */
    public Object input() {
        return Payloads.value(job().getInput());
    }

    /** The newest checkpoint of the attempts before, as {@link Payloads#value} reads it; null where there is none. */
    public Object lastCheckpoint() {
        return Payloads.value(job().getCheckpoint());
    }

    /**
     * Somebody asked the job to stop: end, however. Heard with every report and heartbeat; the handler's thread is
     * interrupted as well.
     */
    public boolean isCancelled() {
        return cancelReason != null;
    }

    /** What was given as the reason for the cancel; null before. */
    public String cancelReason() {
        return cancelReason;
    }

    /**
     * The lease is lost, may be over by this process's clock, or was given back: end. Nothing is told any more. The
     * handler's thread is interrupted as well.
     */
    public boolean isLost() {
        if (System.nanoTime() - heldUntil >= 0) {
            lose();
        }
        return held.isCancelled();
    }

    /** The worker stops: what does not end within its grace is handed back. */
    public boolean isDraining() {
        return worker.isDraining();
    }

    /**
     * Tells how far it has come.
     *
     * @param fraction 0 to 1
     */
    public void progress(double fraction) {
        progress(Progress.newBuilder().setFraction(fraction).build());
    }

    /**
     * Tells how far it has come.
     *
     * @param progress with units, phase or message
     */
    public void progress(Progress progress) {
        report(ReportRequest.newBuilder().addEvents(WorkerEvent.newBuilder().setProgress(progress)));
    }

    /**
     * Tells partial output, in the stream {@code stdout}.
     *
     * @param text of any length
     */
    public void output(String text) {
        output("stdout", text);
    }

    /**
     * Tells partial output.
     *
     * @param stream a name, as {@code tokens}
     * @param text of any length
     */
    public void output(String stream, String text) {
        for (int start = 0, end; start < text.length(); start = end) {
            end = Math.min(start + CHUNK, text.length());
            if (end < text.length() && Character.isHighSurrogate(text.charAt(end - 1))) {
                end--; // Its other half is in the next chunk, and so it goes there as well.
            }
            Payload part = Payload.newBuilder().setText(text.substring(start, end)).build();
            OutputChunk chunk = OutputChunk.newBuilder().setStream(stream).setChunk(part).build();
            report(ReportRequest.newBuilder().addEvents(WorkerEvent.newBuilder().setOutput(chunk)));
        }
    }

    /**
     * Tells a line for people, as INFO.
     *
     * @param message at most 16 KiB; longer ones are cut
     */
    public void log(String message) {
        LogLine line = LogLine.newBuilder().setLevel(LogLine.Level.LEVEL_INFO).setMessage(message).build();
        report(ReportRequest.newBuilder().addEvents(WorkerEvent.newBuilder().setLog(line)));
    }

    /**
     * Keeps where the next attempt could go on; the newest one stands.
     *
     * @param value as {@link Payloads#of} takes it
     */
    public void checkpoint(Object value) {
        report(ReportRequest.newBuilder().setCheckpoint(Payloads.of(value)));
    }

    /**
     * Tells several events and a checkpoint together, which are stored all or none; or what the other methods have no
     * words for, as bytes, and lines of another level or with fields.
     *
     * @param report with {@code events} and {@code checkpoint}; token and number are set here
     */
    public void report(ReportRequest.Builder report) {
        // One at a time: a number that comes after a higher one is taken for one that came before.
        synchronized (inOrder) {
            if (isLost()) {
                throw new LeaseLostException(job().getJobId(), null);
            }
            ReportRequest request = report.setLeaseToken(leaseToken()).setReportNumber(++number).build();
            long sent = System.nanoTime();
            try {
                ReportResponse answer = Calls.untilAnswered(
                        held, worker.channel, WorkerServiceGrpc.getReportMethod(), request, Calls.FOREVER);
                hear(sent, answer.getCancelRequested(), answer.getCancelReason());
            } catch (StatusRuntimeException error) {
                Status.Code code = error.getStatus().getCode();
                if (code == Status.Code.FAILED_PRECONDITION || code == Status.Code.NOT_FOUND) {
                    lose();
                }
                throw isLost() ? new LeaseLostException(job().getJobId(), error) : error;
            }
        }
    }

    String leaseToken() {
        return leased.getLeaseToken();
    }

    /** Takes note of an answer to what was sent then: the lease is renewed, and maybe the job is to stop. */
    synchronized void hear(long sent, boolean cancelRequested, String reason) {
        if (sent + worker.hold - heldUntil > 0) {
            heldUntil = sent + worker.hold;
        }
        if (cancelRequested && !isCancelled()) {
            cancelReason = reason;
            interrupt();
        }
    }

    /** The lease is not ours any more. */
    void lose() {
        if (held.cancel(null)) {
            interrupt();
        }
    }

    /** Whether the lease is to be renewed: not for a handler that does not stop, but while the end is being told. */
    boolean isKept() {
        return hasEnded.get() || !held.isCancelled();
    }

    /** Answers true to the first who ends it. No handler has anything to tell from here on. */
    boolean end() {
        boolean isFirst = !hasEnded.getAndSet(true);
        lose();
        return isFirst;
    }

    /** Runs the handler in this thread, which is interrupted when it has to stop, and not once it has ended. */
    Object run(Handler handler) throws Exception {
        synchronized (this) {
            runner = Thread.currentThread();
            if (isCancelled() || held.isCancelled()) {
                interrupt();
            }
        }
        try {
            return handler.handle(this);
        } finally {
            synchronized (this) {
                runner = null;
            }
        }
    }

    private synchronized void interrupt() {
        if (runner != null) {
            runner.interrupt();
        }
    }
}
