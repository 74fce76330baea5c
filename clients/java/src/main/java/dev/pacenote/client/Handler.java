package dev.pacenote.client;

/** Does jobs of one type. */
@FunctionalInterface
public interface Handler {
    /**
     * Makes one attempt at a job. The same job may be attempted twice: its id is the key for side effects.
     *
     * @param attempt the job, and the ways to tell how it goes
     * @return the job's result, as {@link Payloads#of} takes it; null for none
     * @throws Outcome to end otherwise than with a result
     * @throws Exception is an error with reason HANDLER_ERROR, and may be tried again
     */
    Object handle(Attempt attempt) throws Exception;
}
