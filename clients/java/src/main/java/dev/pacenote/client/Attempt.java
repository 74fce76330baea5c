package dev.pacenote.client;

import com.google.protobuf.ByteString;
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
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Map;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.BooleanSupplier;

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

    private final ManagedChannel channel;
    private final LeasedJob leased;
    private final BooleanSupplier draining;
    /** Ends when the lease is lost or given back, and with it what is being told. */
    private final Context.CancellableContext held = Context.ROOT.withCancellation();
    private final ReentrantLock inOrder = new ReentrantLock(true);
    private long number;
    private volatile String cancelReason;
    private long expires;
    private boolean hasEnded;
    private boolean wasLost;
    private Thread runner;

    Attempt(ManagedChannel channel, LeasedJob leased, BooleanSupplier draining) {
        this.channel = channel;
        this.leased = leased;
        this.draining = draining;
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

    /** What goes with every call of {@code WorkerService} about this attempt. */
    public String leaseToken() {
        return leased.getLeaseToken();
    }

    /**
     * Somebody asked the job to stop: end, however. Heard with every report and heartbeat; the handler's thread is
     * interrupted as well, once.
     */
    public boolean isCancelled() {
        return cancelReason != null;
    }

    /** What was given as the reason for the cancel; empty before. */
    public String cancelReason() {
        return isCancelled() ? cancelReason : "";
    }

    /**
     * The lease is lost, is surely over by this process's clock, or was given back: end. Nothing is told any more. The
     * handler's thread is interrupted as well, once.
     */
    public boolean isLost() {
        return held.isCancelled();
    }

    /** The worker stops: what does not end within its grace is handed back. */
    public boolean isDraining() {
        return draining.getAsBoolean();
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
        tell(WorkerEvent.newBuilder().setProgress(progress));
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
            output(stream, Payload.newBuilder().setText(text.substring(start, end)));
        }
    }

    /**
     * Tells partial output.
     *
     * @param stream a name
     * @param data of any length
     */
    public void output(String stream, byte[] data) {
        for (int start = 0; start < data.length; start += CHUNK) {
            int size = Math.min(CHUNK, data.length - start);
            output(stream, Payload.newBuilder().setData(ByteString.copyFrom(data, start, size)));
        }
    }

    /**
     * Tells a line for people, as INFO.
     *
     * @param message at most 16 KiB; longer ones are cut
     */
    public void log(String message) {
        log(LogLine.Level.LEVEL_INFO, message, Map.of());
    }

    /**
     * Tells a line for people.
     *
     * @param level how bad it is
     * @param message at most 16 KiB; longer ones are cut
     * @param fields more, by name: JSON, as {@link Payloads#of} takes it
     */
    public void log(LogLine.Level level, String message, Map<String, ?> fields) {
        LogLine.Builder line = LogLine.newBuilder().setLevel(level).setMessage(message);
        tell(WorkerEvent.newBuilder().setLog(line.setFields(Payloads.struct(fields))));
    }

    /**
     * Keeps where the next attempt could go on; the newest one stands.
     *
     * @param value as {@link Payloads#of} takes it
     */
    public void checkpoint(Object value) {
        tell(ReportRequest.newBuilder().setCheckpoint(Payloads.of(value)));
    }

    private void output(String stream, Payload.Builder chunk) {
        tell(WorkerEvent.newBuilder().setOutput(OutputChunk.newBuilder().setStream(stream).setChunk(chunk)));
    }

    private void tell(WorkerEvent.Builder event) {
        tell(ReportRequest.newBuilder().addEvents(event));
    }

    private void tell(ReportRequest.Builder report) {
        // One at a time: a number that comes after a higher one is taken for one that came before.
        inOrder.lock();
        try {
            report.setLeaseToken(leaseToken()).setReportNumber(++number);
            ReportResponse standing = Calls.untilAnswered(
                    held, channel, WorkerServiceGrpc.getReportMethod(), report.build(), Calls.FOREVER, false);
            hear(standing.getCancelRequested(), standing.getCancelReason());
        } catch (StatusRuntimeException error) {
            Status.Code code = error.getStatus().getCode();
            if (code == Status.Code.FAILED_PRECONDITION || code == Status.Code.NOT_FOUND) {
                lose();
            }
            throw isLost() ? new LeaseLostException(job().getJobId(), error) : error;
        } finally {
            inOrder.unlock();
        }
    }

    /** Takes note of whether the job is to stop. */
    void hear(boolean cancelRequested, String reason) {
        if (cancelRequested && !isCancelled()) {
            cancelReason = reason;
            interrupt();
        }
    }

    /** Takes note that the lease holds until then, by {@link System#nanoTime}, unless it is renewed. */
    synchronized void holdsUntil(long nanos) {
        expires = nanos;
    }

    /** How long the lease surely holds, in nanoseconds; for ever where no handler works with it any more. */
    synchronized long left(long now) {
        return hasEnded || isLost() ? Long.MAX_VALUE : expires - now;
    }

    /** Whether the lease is to be kept: also while the end is being told. */
    synchronized boolean isKept() {
        return hasEnded || !isLost();
    }

    /** The lease is not ours any more. */
    void lose() {
        if (held.cancel(null)) {
            interrupt();
        }
    }

    /** Answers true to the first who ends it. No handler has anything to tell from here on. */
    boolean end() {
        synchronized (this) {
            if (hasEnded) {
                return false;
            }
            hasEnded = true;
            wasLost = isLost();
        }
        lose();
        return true;
    }

    /** Whether the lease was lost before it was ended. */
    synchronized boolean wasLost() {
        return wasLost;
    }

    /** The handler begins in this thread, unless it is over before. */
    synchronized boolean enter() {
        runner = isLost() ? null : Thread.currentThread();
        if (runner != null && isCancelled()) {
            interrupt();
        }
        return runner != null;
    }

    /** The handler has ended: no interrupt is meant for its thread any more. */
    synchronized void leave() {
        runner = null;
        Thread.interrupted();
    }

    private synchronized void interrupt() {
        if (runner != null) {
            runner.interrupt();
        }
    }
}
