package dev.pacenote.client;

/** The job is not this worker's any more. Thrown by what an attempt tells; a handler lets it pass. */
public final class LeaseLostException extends RuntimeException {
    private static final long serialVersionUID = 1;

    LeaseLostException(String jobId, Throwable cause) {
        super("the lease of job " + jobId + " is lost", cause);
    }
}
