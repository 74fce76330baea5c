package dev.pacenote.client;

import dev.pacenote.v1.FinishRequest;
import dev.pacenote.v1.JobError;
import dev.pacenote.v1.Snooze;
import java.time.Duration;

/** Thrown by a handler whose attempt does not end with a result: {@code throw Outcome.snooze(delay)}. */
public final class Outcome extends RuntimeException {
    private static final long serialVersionUID = 1;
    final FinishRequest request;

    private Outcome(String message, FinishRequest.Builder request) {
        super(message);
        this.request = request.build();
    }

    /**
     * The attempt has failed.
     *
     * @param reason UPPER_SNAKE_CASE and stable
     * @param message for people
     * @param retryable whether another attempt could help
     * @return to be thrown
     */
    public static Outcome fail(String reason, String message, boolean retryable) {
        return new Outcome(reason + ": " + message, error(reason, message, retryable));
    }

    /**
     * The attempt has failed, and the next one is due after a delay, in place of the backoff of the job's policy.
     *
     * @param delay up to a year
     * @param reason UPPER_SNAKE_CASE and stable
     * @param message for people
     * @return to be thrown
     */
    public static Outcome retry(Duration delay, String reason, String message) {
        FinishRequest.Builder request = error(reason, message, true).setRetryDelay(Calls.proto(delay));
        return new Outcome(reason + ": " + message, request);
    }

    /**
     * The job goes on after a delay, in another attempt. Charges nothing.
     *
     * @param delay up to a year
     * @return to be thrown
     */
    public static Outcome snooze(Duration delay) {
        Snooze snooze = Snooze.newBuilder().setDelay(Calls.proto(delay)).build();
        return new Outcome("for " + delay, FinishRequest.newBuilder().setSnooze(snooze));
    }

    static FinishRequest.Builder error(String reason, String message, boolean retryable) {
        return FinishRequest.newBuilder()
                .setError(JobError.newBuilder().setReason(reason).setMessage(message).setRetryable(retryable));
    }
}
