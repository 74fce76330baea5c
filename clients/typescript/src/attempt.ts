/**
 * One attempt at a job: what a handler sees of it, and what it tells.
 *
 * What it tells is stored once and in the order of the calls, however often the connection breaks. Nothing is told
 * once the lease is lost.
 */
import { create, type JsonObject, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { type CallOptions, type Client, Code, ConnectError } from "@connectrpc/connect";

import { call, type Fields } from "./client.js";
import { fromPayload, toPayload } from "./payload.js";
import { type Job, type LeasedJob, type LeaseStatus, LogLine_Level, PayloadSchema, type ProgressSchema } from "./v1.js";
import { type ReportRequest, ReportRequestSchema, type ReportResponse, type WorkerService } from "./v1.js";

// In UTF-16 units, of at most 3 bytes each: a chunk may have 1 MiB. Chosen: what a watch sends at once.
const CHUNK = 65_536;

/** The job is not this worker's any more. Thrown by what an attempt tells; a handler lets it pass. */
export class LeaseLost extends Error {
  override readonly name = "LeaseLost";
  constructor(jobId: string) {
    super(`job ${jobId} is not this worker's any more`);
  }
}

/** How bad a log line is. */
export type Level = "DEBUG" | "INFO" | "WARN" | "ERROR";

/**
 * What a handler gets. `progress`, `output`, `log` and `checkpoint` resolve once the server has taken it in, and wait
 * for one that is away. They are sent one at a time: await them, or what is told piles up, and a refusal goes unheard.
 * They throw `LeaseLost`, and `ConnectError` where the server refuses what was told.
 */
export class Attempt {
  /** As it was when it was claimed. Its `jobId` is the key for side effects: the job may run twice. */
  readonly job: Job;
  /** As `fromPayload` gives it. */
  readonly input: unknown;
  /** The newest checkpoint of the attempts before; undefined where there is none. */
  readonly lastCheckpoint: unknown;
  /** Aborted once the attempt has to end: it is cancelled, lost, or was handed back. */
  readonly signal: AbortSignal;
  /** Aborted once the worker stops: what does not end within its grace is handed back. */
  readonly draining: AbortSignal;
  /** Somebody asked the job to stop. Heard with every report and heartbeat. */
  cancelled = false;
  /** What they gave as the reason. */
  cancelReason = "";

  /** @internal */ readonly leaseToken: string;
  /** @internal */ hasEnded = false;
  /** @internal What was told so far is told, or refused. */ told: Promise<unknown> = Promise.resolve();
  readonly #service: Client<typeof WorkerService>;
  readonly #stop = new AbortController();
  readonly #lost = new AbortController();
  readonly #holdMs: number;
  #heldUntil: number;
  #expiry: NodeJS.Timeout | undefined;
  #number = 0n;

  /** @internal Of a job that was claimed no earlier than then, by our own clock, which its term is minded by. */
  constructor(
    service: Client<typeof WorkerService>,
    leased: LeasedJob,
    draining: AbortSignal,
    leaseMs: number,
    claimedAt: number,
  ) {
    this.job = leased.job!;
    this.input = fromPayload(this.job.input);
    this.lastCheckpoint = fromPayload(this.job.checkpoint);
    this.signal = this.#stop.signal;
    this.draining = draining;
    this.leaseToken = leased.leaseToken;
    this.#service = service;
    // A margin, so that a worker that is cut off is quiet before another one may get the job.
    this.#holdMs = leaseMs - Math.min(2_000, leaseMs / 5);
    this.#heldUntil = claimedAt + this.#holdMs;
    this.#mindTerm();
  }

  /** The lease is lost, may be over by our own clock, or was given back: nothing is told any more. */
  get lost(): boolean {
    // Not by the timer alone, which a process that was stopped hears late.
    if (performance.now() >= this.#heldUntil) this.lose();
    return this.#lost.signal.aborted;
  }

  /** How far it has come: 0 to 1, or any fields of `Progress`. */
  progress(progress: number | Fields<typeof ProgressSchema>): Promise<void> {
    const value = typeof progress === "number" ? { fraction: progress } : progress;
    return this.#tell({ events: [{ event: { case: "progress", value } }] });
  }

  /** Partial output, of any length. */
  output(text: string | Uint8Array, stream = "stdout"): Promise<void> {
    let told = Promise.resolve();
    for (let start = 0, end; start < text.length; start = end) {
      end = start + CHUNK;
      // Not between the two halves of a character.
      if (typeof text === "string" && /[\uD800-\uDBFF]/.test(text.charAt(end - 1))) end--;
      const part = text.slice(start, end);
      const chunk =
        typeof part === "string" ? create(PayloadSchema, { content: { case: "text", value: part } }) : toPayload(part);
      told = this.#tell({ events: [{ event: { case: "output", value: { stream, chunk } } }] });
    }
    return told;
  }

  /** A line for people, with more by name. */
  log(message: string, level: Level = "INFO", fields: JsonObject = {}): Promise<void> {
    const value = { message, level: LogLine_Level[level], fields };
    return this.#tell({ events: [{ event: { case: "log", value } }] });
  }

  /** Where the next attempt could go on, as `toPayload` takes it; kept once this resolves. */
  checkpoint(value: unknown): Promise<void> {
    return this.#tell({ checkpoint: toPayload(value) });
  }

  /** @internal Takes note of how the lease stands, from an answer to what was sent at that time. */
  hear(standing: ReportResponse | LeaseStatus, sentAt: number): void {
    if ("lost" in standing && standing.lost) return this.lose();
    // The server cannot say how it stands: it was not renewed.
    if (!standing.leaseExpireTime) return;
    this.#heldUntil = Math.max(this.#heldUntil, sentAt + this.#holdMs);
    if (standing.cancelRequested) {
      this.cancelled = true;
      this.cancelReason = standing.cancelReason;
      this.#stop.abort(new DOMException(`job ${this.job.jobId} is cancelled: ${this.cancelReason}`, "AbortError"));
    }
  }

  /** @internal It is over here: the lease is lost, or was given back. */
  lose(): void {
    clearTimeout(this.#expiry);
    const reason = new LeaseLost(this.job.jobId);
    this.#lost.abort(reason);
    this.#stop.abort(reason);
  }

  #mindTerm(): void {
    if (this.lost) return;
    this.#expiry = setTimeout(() => this.#mindTerm(), this.#heldUntil - performance.now());
  }

  #tell(report: MessageInitShape<typeof ReportRequestSchema>): Promise<void> {
    // One at a time: a number that comes after a higher one is taken for one that came before.
    const told = this.told.then(() => this.#report(create(ReportRequestSchema, report)));
    // A promise that nobody awaits must not end the process when the lease is lost.
    this.told = told.catch(() => {});
    return told;
  }

  async #report(request: ReportRequest): Promise<void> {
    if (this.lost) throw new LeaseLost(this.job.jobId);
    request.leaseToken = this.leaseToken;
    request.reportNumber = ++this.#number;
    toBinary(ReportRequestSchema, request); // A field of a wrong type would look like a failure that may heal.
    const sentAt = performance.now();
    const send = (options: CallOptions) => this.#service.report(request, options);
    try {
      this.hear(await call(send, { signal: this.#lost.signal }), sentAt);
    } catch (error) {
      // What it says when a lease is lost.
      const isLoss = error instanceof ConnectError && [Code.FailedPrecondition, Code.NotFound].includes(error.code);
      if (isLoss) this.lose();
      throw this.lost ? new LeaseLost(this.job.jobId) : error;
    }
  }
}
