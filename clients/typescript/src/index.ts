/** Client and worker for Pacenote: submit jobs, watch them to their end, and do them. */
export { connect, submit, watch } from "./client.js";
export type { SubmitOptions, WatchOptions } from "./client.js";
export { fromPayload, toPayload } from "./payload.js";
export { Fail, Retry, Snooze, Worker } from "./worker.js";
export type { Handler, WorkerOptions } from "./worker.js";
export { LeaseLost } from "./attempt.js";
export type { Attempt, Level } from "./attempt.js";
