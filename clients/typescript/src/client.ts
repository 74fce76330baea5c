/**
 * Submits jobs and watches them, over however many broken connections.
 *
 * It promises that a submit makes one job, and that a watch shows each event once, in order, to the end. It does not
 * wrap the rest of the API: the generated clients are good as they are.
 */
import { randomUUID } from "node:crypto";
import type { ClientHttp2Session, ClientHttp2Stream } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";

import { create, type DescMessage, type Message, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import { type CallOptions, type Client, Code, ConnectError, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, type GrpcTransportOptions, Http2SessionManager } from "@connectrpc/connect-node";

import { toPayload } from "./payload.js";
import { type JobService, RetryInfoSchema, SubmitRequestSchema, type SubmitResponse } from "./v1.js";
import { WatchJobRequestSchema, type WatchJobResponse } from "./v1.js";

/** What `create` takes for a message, without what the helper sets itself. */
export type Fields<Desc extends DescMessage, Set extends string = never> = Omit<
  Exclude<MessageInitShape<Desc>, Message>,
  Set
>;

/** Deadline of one unary call, in milliseconds: without one, it waits for a dead network for ever. */
export const CALL_MS = 10_000;

// What may heal, by the table in docs/protocol.md. All else stays as it is however often one asks. Aborted is none of
// the server's: it is what Connect makes of a connection that was reset.
const { Unavailable, ResourceExhausted, DeadlineExceeded, Canceled, Internal, Unknown, Aborted } = Code;
const TRANSIENT = [Unavailable, ResourceExhausted, DeadlineExceeded, Canceled, Internal, Unknown, Aborted];

/**
 * A connection to a server, with keepalive. It opens with the first call, comes back by itself, and does not keep the
 * process alive while no call is open.
 *
 * @param address `host:port`, or a URL with `http:` or `https:`. Default: 127.0.0.1:7430.
 * @param options Those of `createGrpcTransport`, in place of what docs/protocol.md asks for; interceptors, say.
 */
export function connect(address = "127.0.0.1:7430", options: Partial<GrpcTransportOptions> = {}): Transport {
  const baseUrl = address.includes("://") ? address : `http://${address}`;
  const keepalive = { pingIntervalMs: 30_000, pingTimeoutMs: 10_000, pingIdleConnection: true, ...options };
  // The window of a stream is small, so that one that nobody reads stops the server early.
  const settings = { initialWindowSize: 256 << 10, ...options.nodeOptions?.settings };
  const sessionManager = new Connections(baseUrl, keepalive, { ...options.nodeOptions, settings });
  return createGrpcTransport({ baseUrl, sessionManager, readMaxBytes: 4 << 20, ...options });
}

class Connections extends Http2SessionManager {
  override async request(...how: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...how);
    // Of the whole connection, which no setting says: large, so that neighbours do not wait for each other.
    (stream.session as ClientHttp2Session | undefined)?.setLocalWindowSize(4 << 20);
    return stream;
  }
}

/** How to submit: the fields of `SubmitRequest`, and when to stop. */
export type SubmitOptions = Fields<typeof SubmitRequestSchema, "type" | "input"> & {
  /** Ends the tries; what was sent may have been stored. */
  signal?: AbortSignal;
  /** For all tries together, in milliseconds. Default: 60,000. */
  deadlineMs?: number;
};

/**
 * Makes one job, and is sent again until it is answered. Without an `idempotencyKey` it gets one of its own; give it
 * yours, and the submit may be repeated by another process.
 *
 * @param input As `toPayload` takes it.
 * @throws ConnectError where asking again does not help, and the last one once `deadlineMs` are over; the signal's
 * reason once that is aborted.
 */
export async function submit(
  jobs: Pick<Client<typeof JobService>, "submit">,
  type: string,
  input?: unknown,
  { signal, deadlineMs = 60_000, ...fields }: SubmitOptions = {},
): Promise<SubmitResponse> {
  const request = create(SubmitRequestSchema, { idempotencyKey: randomUUID(), ...fields, type });
  if (input !== undefined) request.input = toPayload(input);
  toBinary(SubmitRequestSchema, request); // A field of a wrong type would look like a failure that may heal.
  return await call((options) => jobs.submit(request, options), { signal, deadlineMs });
}

/** How to watch: the fields of `WatchJobRequest`, and when to stop. */
export type WatchOptions = Fields<typeof WatchJobRequestSchema, "jobId" | "afterSequence" | "heartbeatInterval"> & {
  /** `throughSequence` to go on from; 0, the default, for all that is kept; null for a snapshot and what follows. */
  after?: bigint | null;
  /** How often a quiet stream is heard of, 1,000 to 300,000 ms; after three times that it is dead. Default: 15,000. */
  heartbeatMs?: number;
  /** Ends the watch. So does leaving the loop; but between messages only the signal is heard. */
  signal?: AbortSignal;
};

/**
 * Every message of a job's watch until the job is over; the last one is the snapshot with the result. Store
 * `throughSequence` with what you made of a message, and a crash of yours loses nothing either. None of it touches
 * the job.
 *
 * @throws ConnectError where asking again does not help; the signal's reason once that is aborted.
 */
export async function* watch(
  jobs: Pick<Client<typeof JobService>, "watchJob">,
  jobId: string,
  { after = 0n, heartbeatMs = 15_000, signal, ...fields }: WatchOptions = {},
): AsyncGenerator<WatchJobResponse, void, undefined> {
  const heartbeatInterval = durationFromMs(heartbeatMs);
  const afterSequence = after ?? undefined;
  const request = create(WatchJobRequestSchema, { ...fields, jobId, heartbeatInterval, afterSequence });
  const backoff = new Backoff();
  for (;;) {
    signal?.throwIfAborted();
    const stream = new AbortController();
    const stop = () => stream.abort();
    signal?.addEventListener("abort", stop);
    let broken: unknown; // Stays so with an OK without the final snapshot, which is a proxy's.
    try {
      const messages = jobs.watchJob(request, { signal: stream.signal })[Symbol.asyncIterator]();
      for (;;) {
        // Only while somebody waits: however long the caller takes with a message, that is no silence.
        const silence = setTimeout(stop, 3 * heartbeatMs);
        const next = await messages.next().finally(() => clearTimeout(silence));
        if (next.done) break;
        backoff.reset();
        yield next.value;
        request.afterSequence = next.value.throughSequence;
        // Not the OK after it: were that lost, the snapshot would come twice.
        if (isEnd(next.value)) return;
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (!isTransient(error)) throw error;
      broken = error;
    } finally {
      signal?.removeEventListener("abort", stop);
      stop();
    }
    await pause(backoff.next(broken), signal);
  }
}

/** The last message. After a gap, a job that is over is shown with more of its log to come. */
function isEnd({ content, throughSequence }: WatchJobResponse): boolean {
  return content.case === "snapshot" && !!content.value.endTime && throughSequence >= content.value.lastSequence;
}

/**
 * Makes a call that may be repeated until it is answered.
 *
 * @throws ConnectError, the last one, where that cannot heal or the next try would be past `deadlineMs`; the signal's
 * reason once that is aborted.
 */
export async function call<Answer>(
  send: (options: CallOptions) => Promise<Answer>,
  { signal, deadlineMs = Infinity }: { signal?: AbortSignal; deadlineMs?: number } = {},
): Promise<Answer> {
  const backoff = new Backoff();
  const end = performance.now() + deadlineMs;
  for (;;) {
    signal?.throwIfAborted();
    try {
      // At least 1: where that is 0 or less, Connect sets no deadline at all.
      const timeoutMs = Math.max(1, Math.ceil(Math.min(CALL_MS, end - performance.now())));
      return await send({ timeoutMs, signal });
    } catch (error) {
      signal?.throwIfAborted();
      const wait = backoff.next(error);
      if (!isTransient(error) || performance.now() + wait >= end) throw error;
      await pause(wait, signal);
    }
  }
}

/** Whether it may heal. */
export function isTransient(error: unknown): boolean {
  return error instanceof ConnectError && TRANSIENT.includes(error.code);
}

/** Waits, or until the signal is aborted, which the caller has to look at. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {});
}

/** Waits between tries: uniform in 0 to 0.1 s, doubling to 30 s, and never less than the server asks for. */
export class Backoff {
  #ceilingMs = 100;

  /** Begins again with the shortest wait. */
  reset(): void {
    this.#ceilingMs = 100;
  }

  /** Milliseconds to wait now. */
  next(error?: unknown): number {
    const ceilingMs = this.#ceilingMs;
    this.#ceilingMs = Math.min(2 * ceilingMs, 30_000);
    const info = error instanceof ConnectError ? error.findDetails(RetryInfoSchema)[0] : undefined;
    return (info?.retryDelay ? durationMs(info.retryDelay) : 0) + Math.random() * ceilingMs;
  }
}
