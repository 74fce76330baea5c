/**
 * Does jobs: leases them, runs a handler for each, and tells how it ended.
 *
 * It promises that every end is told until it is answered, that leases are renewed while their jobs run, and that a
 * worker that was cut off stops its handlers before another one may get their jobs. It cannot stop a handler that does
 * not look at its signal. An attempt may run twice: the job id is the key for side effects.
 */
import { randomUUID } from "node:crypto";
import { EventEmitter, once, setMaxListeners } from "node:events";
import { hostname } from "node:os";
import { inspect } from "node:util";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";

import { Attempt } from "./attempt.js";
import { Backoff, call, CALL_MS, isTransient, pause } from "./client.js";
import { toPayload } from "./payload.js";
import { type FinishRequestSchema, WorkerService } from "./v1.js";

// How long one call waits for work.
const WAIT_MS = 30_000;
// What a drain takes beyond its grace where the server does not answer. Chosen.
const HAND_BACK_MS = 5_000;
// How long a drain waits for work that may be on its way. Chosen: where work waits, it comes in milliseconds.
const ON_ITS_WAY_MS = 500;

type End = MessageInitShape<typeof FinishRequestSchema>;

const HAND_BACK: End = { outcome: { case: "handBack", value: {} } };

class Ending extends Error {
  /** @internal */ readonly end: End;

  /** @internal */
  constructor(message: string, end: End) {
    super(message);
    this.end = end;
  }
}

/** Thrown by a handler: the attempt has failed. `reason` is UPPER_SNAKE_CASE and stable. */
export class Fail extends Ending {
  /** @param retryable Whether another attempt could help. */
  constructor(reason: string, message = "", retryable = false) {
    super(message, failed(String(reason), String(message), retryable));
  }
}

/** Thrown by a handler: the attempt has failed, and the next one is due after `delayMs`. */
export class Retry extends Ending {
  constructor(delayMs: number, message = "", reason = "HANDLER_ERROR") {
    super(message, { ...failed(String(reason), String(message), true), retryDelay: durationFromMs(delayMs) });
  }
}

/** Thrown by a handler: the job goes on after `delayMs`, in another attempt. Charges nothing. */
export class Snooze extends Ending {
  constructor(delayMs: number) {
    super(`for ${delayMs} ms`, { outcome: { case: "snooze", value: { delay: durationFromMs(delayMs) } } });
  }
}

/** Does a job. What it returns or resolves to is the result, as `toPayload` takes it. */
export type Handler = (attempt: Attempt) => unknown;

/** What a worker does, and how much of it. */
export interface WorkerOptions {
  /** A handler for each type of jobs. */
  handlers: Record<string, Handler>;
  /** Shown as the jobs' `workerId`. Best unique for a process, as the default is. */
  workerId?: string;
  /** Where its jobs may wait. Default: every queue. */
  queues?: string[];
  /** How many jobs run at once, 1 to 1,000. Default: 1. */
  concurrency?: number;
  /** How long a job stays with a worker that fell silent, 5,000 to 300,000 ms. Default: 15,000. */
  leaseMs?: number;
}

/**
 * Leases jobs of the types of `handlers`, `concurrency` at once, until it is drained.
 *
 * A handler's value is the job's result, in JSON. It ends otherwise with `Fail`, `Retry` or `Snooze`; anything else
 * that it throws is an error with reason HANDLER_ERROR that may be tried again. Where somebody asked the job to stop,
 * it is cancelled, however the handler ends.
 */
export class Worker {
  readonly #service: Client<typeof WorkerService>;
  readonly #options: Required<WorkerOptions>;
  readonly #running = new Set<Attempt>();
  readonly #draining = new AbortController();
  readonly #closed = new AbortController();
  readonly #changes = new EventEmitter();
  #poll: AbortController | undefined;

  constructor(transport: Transport, options: WorkerOptions) {
    const workerId = `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`;
    this.#options = { workerId, queues: [], concurrency: 1, leaseMs: 15_000, ...options };
    if (!(this.#options.concurrency >= 1)) throw new RangeError("concurrency is 1 to 1000");
    this.#service = createClient(WorkerService, transport);
    setMaxListeners(0, this.#draining.signal, this.#closed.signal);
  }

  /**
   * Works until `drain` is done.
   *
   * @throws ConnectError where the server refuses to give work for good.
   */
  async run(): Promise<void> {
    const backoff = new Backoff();
    const draining = this.#draining.signal;
    const renewals = this.#keepLeases();
    try {
      for (;;) {
        await this.#until(() => draining.aborted || this.#running.size < this.#options.concurrency);
        if (draining.aborted) break;
        await pause(await this.#lease(backoff), draining);
      }
    } finally {
      if (!draining.aborted) await this.drain();
      await this.#until(() => this.#closed.signal.aborted);
      await renewals;
    }
  }

  /** Leases no more, waits up to `graceMs` for what runs, and hands back what has not ended then. */
  async drain(graceMs = 20_000): Promise<void> {
    this.#draining.abort();
    this.#changes.emit("change");
    // An answer that a cancel crosses on its way is heard by nobody: its jobs would be held, and charged, until their
    // leases end. What comes in time is handed back.
    await this.#until(() => !this.#poll, ON_ITS_WAY_MS);
    this.#poll?.abort();
    await this.#until(() => this.#running.size === 0, graceMs);
    for (const attempt of this.#running) void this.#end(attempt, attempt.lost ? undefined : HAND_BACK);
    await this.#until(() => this.#running.size === 0, HAND_BACK_MS);
    this.#closed.abort();
    this.#changes.emit("change");
  }

  /** Leases once, and begins what comes. Resolves to how long to wait before the next time. */
  async #lease(backoff: Backoff): Promise<number> {
    const { workerId, handlers, queues, concurrency, leaseMs } = this.#options;
    const request = {
      workerId,
      types: Object.keys(handlers),
      queues,
      maxJobs: concurrency - this.#running.size,
      lease: durationFromMs(leaseMs),
      wait: durationFromMs(WAIT_MS),
    };
    this.#poll = new AbortController();
    try {
      const sentAt = performance.now();
      const how = { timeoutMs: WAIT_MS + CALL_MS, signal: this.#poll.signal };
      const { leasedJobs, waited, drain } = await this.#service.lease(request, how);
      const claimedAt = sentAt + (waited ? durationMs(waited) : 0);
      for (const leased of leasedJobs) {
        void this.#work(new Attempt(this.#service, leased, this.#draining.signal, leaseMs, claimedAt));
      }
      if (drain) return backoff.next(); // The server's, not ours: it says so at once, as long as it is there.
      backoff.reset();
      return 0;
    } catch (error) {
      if (!isTransient(error)) throw error;
      return backoff.next(error);
    } finally {
      // Not before what came is among the running ones: a drain would not wait for it.
      this.#poll = undefined;
      this.#changes.emit("change");
    }
  }

  async #work(attempt: Attempt): Promise<void> {
    this.#running.add(attempt);
    let end: End | undefined = HAND_BACK; // What comes while draining, or so late that its lease may be over.
    if (!this.#draining.signal.aborted && !attempt.lost) {
      end = await outcome(this.#options.handlers[attempt.job.type]!, attempt);
      await attempt.told;
      if (attempt.cancelled) end = { outcome: { case: "cancelled", value: {} } };
      if (attempt.lost) end = undefined;
    }
    await this.#end(attempt, end);
  }

  /** Ends an attempt, for the first one who does, and tells how, if at all. It is renewed until that is answered. */
  async #end(attempt: Attempt, end: End | undefined): Promise<void> {
    if (attempt.hasEnded) return;
    attempt.hasEnded = true;
    attempt.lose(); // What the handler left behind has nothing to tell any more.
    try {
      if (end) await this.#finish({ ...end, leaseToken: attempt.leaseToken });
    } catch (error) {
      process.emitWarning(`the end of job ${attempt.job.jobId} was not taken in: ${error}`, "PacenoteWarning");
    } finally {
      this.#running.delete(attempt);
      this.#changes.emit("change");
    }
  }

  async #finish(end: End): Promise<void> {
    const signal = this.#closed.signal;
    try {
      await call((options) => this.#service.finish(end, options), { signal });
    } catch (error) {
      if (!(error instanceof ConnectError && error.code === Code.InvalidArgument)) throw error;
      // A result that is too large, a reason that is none: said as an error, so that the job does not hang.
      const reason = end.outcome?.case === "result" ? "RESULT_INVALID" : "HANDLER_ERROR";
      const refused = { ...failed(reason, error.rawMessage, false), leaseToken: end.leaseToken! };
      await call((options) => this.#service.finish(refused, options), { signal });
    }
  }

  /** Renews all leases after a third of their term, and hears which are lost and which jobs are to stop. */
  async #keepLeases(): Promise<void> {
    const backoff = new Backoff();
    const beatMs = this.#options.leaseMs / 3;
    for (let waitMs = beatMs; ;) {
      await pause(waitMs, this.#closed.signal);
      if (this.#closed.signal.aborted) return;
      const sentAt = performance.now();
      try {
        // Not what is lost by our own clock: it would be kept from others for a handler that does not stop.
        await this.#renew([...this.#running].filter((attempt) => attempt.hasEnded || !attempt.lost));
        backoff.reset();
        waitMs = sentAt + beatMs - performance.now();
      } catch (error) {
        waitMs = Math.min(beatMs / 2, backoff.next(error));
      }
    }
  }

  /** Renews leases at once. Throws what may heal. */
  async #renew(attempts: Attempt[]): Promise<void> {
    if (attempts.length === 0) return;
    const leaseTokens = attempts.map((attempt) => attempt.leaseToken);
    const sentAt = performance.now();
    try {
      // The term has to have room for a second try, and a third.
      const timeoutMs = Math.min(CALL_MS, this.#options.leaseMs / 6);
      const { leases } = await this.#service.extendLeases({ leaseTokens }, { timeoutMs, signal: this.#closed.signal });
      attempts.forEach((attempt, index) => attempt.hear(leases[index]!, sentAt));
    } catch (error) {
      if (isTransient(error)) throw error;
      // One token that the server does not know, as after its store was replaced, must not take the others along.
      if (attempts.length > 1) await Promise.all(attempts.map((attempt) => this.#renew([attempt])));
      else attempts[0]!.lose();
    }
  }

  /** Resolves once it is so, or after `ms`. */
  async #until(isSo: () => boolean, ms = Infinity): Promise<void> {
    const signal = ms === Infinity ? undefined : AbortSignal.timeout(ms);
    while (!isSo() && !signal?.aborted) await once(this.#changes, "change", { signal }).catch(() => {});
  }
}

/** Runs the handler, and says how it ended. */
async function outcome(handler: Handler, attempt: Attempt): Promise<End> {
  let value: unknown;
  try {
    value = await handler(attempt);
  } catch (error) {
    if (error instanceof Ending) return error.end;
    const detail = inspect(error).slice(0, 16_384);
    return failed("HANDLER_ERROR", error instanceof Error ? `${error}` : detail, true, detail);
  }
  try {
    return { outcome: { case: "result", value: toPayload(value) } };
  } catch (error) {
    return failed("RESULT_INVALID", `the result is no JSON: ${error}`, false);
  }
}

function failed(reason: string, message: string, retryable: boolean, detail = ""): End {
  return { outcome: { case: "error", value: { reason, message, retryable, detail } } };
}
