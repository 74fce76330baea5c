/**
 * What the tests share: a server of its own for each, whose binary is $PACENOTE, and what they see of it.
 *
 * They wait for what happens, with a deadline. Without the binary nothing is checked, which is said, and in CI is a
 * failure.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, closeSync, constants, openSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, createConnection, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { toBinary } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { connect, type Handler, Worker, type WorkerOptions } from "pacenote";
import {
  ErrorInfoSchema,
  type Job,
  type JobEvent,
  JobService,
  type WatchJobResponse,
  WorkerService,
} from "pacenote/v1";

const BINARY = resolve(process.env["PACENOTE"] ?? "");
/** How long anything may take that a test waits for. */
export const PATIENCE_MS = 20_000;

function isMissing(): string | false {
  try {
    assert.ok(process.env["PACENOTE"]);
    accessSync(BINARY, constants.X_OK);
    return false;
  } catch {
    const message = `NOTHING WAS CHECKED: PACENOTE=${process.env["PACENOTE"] ?? ""} is no program`;
    if (process.env["CI"] === "true") throw new Error(message);
    console.error(message);
    return message;
  }
}

const missing = isMissing();

/** A test with a server of its own. */
export function check(sentence: string, body: (server: Server) => Promise<void>, ...settings: string[]): void {
  test(sentence, { skip: missing, timeout: 60_000 }, async () => {
    const server = new Server(await mkdtemp(join(tmpdir(), "pacenote-")), settings);
    try {
      await server.start();
      await body(server);
    } finally {
      await server.end();
    }
  });
}

/** A server that can be killed, and started again on the same port and store. */
export class Server {
  address = "127.0.0.1:0";
  process!: ChildProcess;
  readonly #cleanUps: (() => Promise<unknown>)[] = [];

  constructor(
    readonly folder: string,
    readonly settings: string[],
  ) {}

  async start(): Promise<void> {
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PACENOTE")));
    const path = join(this.folder, "server.log");
    const log = openSync(path, "w");
    const stdio = ["ignore", "ignore", log] as const;
    const arguments_ = ["serve", "--listen", this.address, ...this.settings];
    this.process = spawn(BINARY, arguments_, { cwd: this.folder, env, stdio: [...stdio] });
    closeSync(log);
    this.address = await eventually(() => {
      assert.equal(this.process.exitCode, null, readFileSync(path, "utf8"));
      return /^listening on (\S+)$/m.exec(readFileSync(path, "utf8"))?.[1];
    });
  }

  async kill(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill("SIGKILL");
    await once(this.process, "exit");
  }

  /** To be done at the end, the last one first. */
  defer(cleanUp: () => Promise<unknown>): void {
    this.#cleanUps.push(cleanUp);
  }

  async end(): Promise<void> {
    const failures: unknown[] = [];
    for (const cleanUp of [
      () => rm(this.folder, { recursive: true }),
      () => this.kill(),
      ...this.#cleanUps,
    ].reverse()) {
      await cleanUp().catch((error) => failures.push(error));
    }
    assert.deepEqual(failures, []);
  }

  /** A proxy before it, which can break its connections: its address, and how to. */
  async proxy(): Promise<{ address: string; reset: () => void }> {
    const [host, port] = this.address.split(":");
    const open = new Set<Socket>();
    const proxy = createServer((near) => {
      const far = createConnection(Number(port), host);
      for (const [one, other] of [
        [near, far],
        [far, near],
      ] as const) {
        open.add(one);
        one.pipe(other).on("error", () => {});
        one.on("close", () => (other.destroy(), open.delete(one)));
      }
    });
    proxy.listen(0, host);
    await once(proxy, "listening");
    const reset = () => open.forEach((socket) => socket.resetAndDestroy());
    this.defer(async () => (proxy.close(), reset()));
    return { address: `${host}:${(proxy.address() as AddressInfo).port}`, reset };
  }

  jobs(...interceptors: Interceptor[]): Client<typeof JobService> {
    return createClient(JobService, connect(this.address, { interceptors }));
  }

  worker(): Client<typeof WorkerService> {
    return createClient(WorkerService, connect(this.address));
  }

  /** Leases a job of the type `work` without a worker, and makes the type known. */
  async lease(workerId: string, waitMs = PATIENCE_MS) {
    const terms = { lease: durationFromMs(5_000), wait: durationFromMs(waitMs) };
    return await this.worker().lease({ workerId, types: ["work"], ...terms }, { timeoutMs: waitMs + 10_000 });
  }

  /** From here on jobs of the type `work` may be submitted. */
  async makeKnown(): Promise<void> {
    if (await this.isKnown("work")) return;
    assert.equal((await this.lease("the first one", 0)).leasedJobs.length, 0);
  }

  async isKnown(type: string): Promise<boolean> {
    const answer = this.jobs().submit({ type, validateOnly: true }, { timeoutMs: 10_000 });
    return await answer.then(
      () => true,
      () => false,
    );
  }

  /** A worker for the type `work` that runs until the end. */
  async working(
    handler: Handler,
    options: Partial<WorkerOptions> = {},
    ...interceptors: Interceptor[]
  ): Promise<Worker> {
    await this.makeKnown();
    const transport = connect(this.address, { interceptors });
    const worker = new Worker(transport, { handlers: { work: handler }, leaseMs: 5_000, ...options });
    const run = worker.run();
    run.catch(() => {}); // Heard at the end.
    this.defer(async () => {
      await worker.drain(0);
      await within(run);
    });
    return worker;
  }
}

/** What `look` answers, once it is anything. */
export async function eventually<Found>(look: () => Found | Promise<Found>): Promise<NonNullable<Found>> {
  for (const end = performance.now() + PATIENCE_MS; ; await sleep(20)) {
    const found = await look();
    if (found) return found;
    assert.ok(performance.now() < end, "it did not happen in time");
  }
}

/** What a promise resolves to, in time. */
export async function within<Value>(promise: Promise<Value>): Promise<Value> {
  const late = new AbortController();
  const tooLate = sleep(PATIENCE_MS, undefined, { signal: late.signal }).then(() => {
    throw new Error("it did not happen in time");
  });
  tooLate.catch(() => {});
  return await Promise.race([promise, tooLate]).finally(() => late.abort());
}

/** Something that happens, and may be waited for. */
export class Happening<Value = void> {
  readonly promise: Promise<Value>;
  happen!: (value: Value) => void;

  constructor() {
    this.promise = new Promise((resolve) => (this.happen = resolve));
  }

  get heard(): Promise<Value> {
    return within(this.promise);
  }
}

/** The signal is aborted, in time. */
export async function aborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await within(once(signal, "abort"));
}

/** All events of a watch from the beginning, without a hole or a double, and the job at its end. */
export async function gathered(messages: AsyncIterable<WatchJobResponse> | Iterable<WatchJobResponse>) {
  const events: JobEvent[] = [];
  let end: Job | undefined;
  for await (const { content } of messages) {
    assert.equal(end, undefined, "nothing comes after the end");
    if (content.case === "events") events.push(...content.value.events);
    if (content.case === "snapshot") end = content.value;
  }
  assert.deepEqual(
    events.map((event) => event.sequence),
    events.map((_, index) => BigInt(index + 1)),
  );
  assert.ok(end?.endTime);
  assert.equal(end.lastSequence, BigInt(events.length));
  return { events, end };
}

type Kind = NonNullable<JobEvent["event"]["case"]>;

/** The events of one kind. */
export function of<K extends Kind>(kind: K, events: JobEvent[]) {
  type Found = Extract<JobEvent["event"], { case: K }>["value"];
  return events.flatMap(({ event }) => (event.case === kind ? [event.value as Found] : []));
}

/** The text of an output stream, whose offsets have to be right. */
export function output(events: JobEvent[], stream = "stdout"): string {
  let text = "";
  for (const chunk of of("output", events).filter((chunk) => chunk.stream === stream)) {
    assert.equal(chunk.offset, BigInt(Buffer.byteLength(text)));
    text += chunk.chunk?.content.value;
  }
  return text;
}

/** The code and reason of what a promise is refused with. */
export async function refusal(promise: Promise<unknown>): Promise<[string, string | undefined]> {
  const error = await promise.then(
    () => assert.fail("it was not refused"),
    (error: unknown) => error,
  );
  if (!(error instanceof ConnectError)) throw error;
  return [Code[error.code]!, error.findDetails(ErrorInfoSchema)[0]?.reason];
}

/** Loses each different request of some methods once, or else the first answer to it. Notes the methods in `lost`. */
export function loses(lost: string[], methods: string[], what: "requests" | "answers"): Interceptor {
  const seen = new Set<string>();
  return (next) => async (request) => {
    if (request.stream || !methods.includes(request.method.name)) return await next(request);
    const key = request.method.name + Buffer.from(toBinary(request.method.input, request.message)).toString("hex");
    if (seen.has(key)) return await next(request);
    if (what === "answers") await next(request);
    seen.add(key);
    lost.push(request.method.name);
    throw new ConnectError("the connection broke", Code.Unavailable);
  };
}

/** Tells of each call of a method before it is sent. */
export function hears(method: string, heard: (signal: AbortSignal) => unknown): Interceptor {
  return (next) => async (request) => {
    if (request.method.name === method) await heard(request.signal);
    return await next(request);
  };
}

/** All that comes. */
export async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
}
