/** Submit and watch against a real server that is killed, stopped and started again under them. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { connect, fromPayload, submit, toPayload, watch } from "pacenote";
import { Job_State, JobService, RetryInfoSchema, type WatchJobResponse } from "pacenote/v1";

import { all, check, eventually, gathered, Happening, hears, loses, of, refusal, within } from "./server.js";

check("a job is watched from its submit to its result", async (server) => {
  const jobs = server.jobs();
  const { job } = await submit(jobs, "sleep", { seconds: 0.5 });
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.equal(end.state, Job_State.SUCCEEDED);
  assert.deepEqual(fromPayload(end.result), { slept_seconds: 0.5 });
  const fractions = of("progress", events).map(({ fraction }) => fraction!);
  assert.deepEqual(
    fractions,
    [...fractions].sort((one, other) => one - other),
  );
  assert.equal(fractions.at(-1), 1);
  // With a snapshot first, and of a job that is over.
  const messages = [];
  for await (const message of watch(jobs, job!.jobId, { after: null })) messages.push(message);
  assert.equal(messages.length, 1);
  assert.deepEqual(messages[0]!.content.value, end);
});

check("a watch goes on after the server was killed and started again", async (server) => {
  const jobs = server.jobs();
  const { job } = await submit(jobs, "sleep", { seconds: 2 });
  let cuts = 0;
  async function* cut(): AsyncGenerator<WatchJobResponse> {
    for await (const message of watch(jobs, job!.jobId)) {
      yield message;
      if (message.throughSequence < 5 * (cuts + 1) || cuts === 2) continue;
      cuts++;
      await server.kill();
      await server.start();
    }
  }
  const { events, end } = await gathered(cut());
  assert.equal(end.state, Job_State.SUCCEEDED);
  assert.equal(cuts, 2);
  const ends = of("attemptEnd", events).map(({ error }) => error?.reason);
  assert.ok(ends.length > 0 && ends.every((reason) => reason === "WORKER_LOST"), `${ends}`);
});

check("a watch that is closed and begun anew at every message loses nothing", async (server) => {
  const jobs = server.jobs();
  const { job } = await submit(jobs, "sleep", { seconds: 1 });
  let cuts = 0;
  async function* cut(): AsyncGenerator<WatchJobResponse> {
    for (let after = 0n; ; cuts++) {
      for await (const message of watch(jobs, job!.jobId, { after })) {
        yield message;
        after = message.throughSequence;
        if (message.content.case === "snapshot") return;
        break;
      }
    }
  }
  const { end } = await gathered(cut());
  assert.equal(end.state, Job_State.SUCCEEDED);
  assert.ok(cuts > 5, `${cuts} cuts`);
});

check("a stream that broke is resumed after what was delivered, and not after what was received", async (server) => {
  const jobs = server.jobs();
  const { job } = await submit(jobs, "sleep", { seconds: 0.5 });
  await gathered(watch(jobs, job!.jobId));
  const asked: (bigint | undefined)[] = [];
  // Each stream gives one message of one event, although more came with it, and breaks, the last time instead of OK.
  const breaks = {
    watchJob: async function* (request: { afterSequence?: bigint }, options: object) {
      asked.push(request.afterSequence);
      for await (const message of jobs.watchJob({ jobId: job!.jobId, ...request }, options)) {
        if (message.content.case === "events") {
          message.content.value.events.length = 1;
          message.throughSequence = message.content.value.events[0]!.sequence;
        }
        yield message;
        throw new ConnectError("the connection broke", Code.Internal);
      }
    } as typeof jobs.watchJob,
  };
  const { events, end } = await gathered(watch(breaks, job!.jobId));
  assert.equal(end.state, Job_State.SUCCEEDED);
  assert.deepEqual(
    asked,
    [...Array(events.length + 1).keys()].map((sequence) => BigInt(sequence)),
  );
});

check("an OK without the final snapshot is not the end", async (server) => {
  const jobs = server.jobs();
  const { job } = await submit(jobs, "sleep", { seconds: 0.2 });
  let streams = 0;
  const ends = {
    watchJob: async function* (...how: Parameters<typeof jobs.watchJob>) {
      if (++streams < 3) return;
      yield* jobs.watchJob(...how);
    } as typeof jobs.watchJob,
  };
  const { end } = await gathered(watch(ends, job!.jobId));
  assert.equal(end.state, Job_State.SUCCEEDED);
  assert.equal(streams, 3);
});

check("a watch takes a stream that is silent for dead", async (server) => {
  let streams = 0;
  const jobs = server.jobs(hears("WatchJob", () => streams++));
  await server.makeKnown();
  const { job } = await submit(jobs, "work");
  const messages = watch(jobs, job!.jobId, { heartbeatMs: 1_000 });
  const first = (await messages.next()).value!;
  // A stopped server says nothing and closes nothing.
  server.process.kill("SIGSTOP");
  const rest = all(messages);
  try {
    await eventually(() => streams > 1);
  } finally {
    server.process.kill("SIGCONT");
  }
  await jobs.cancel({ jobId: job!.jobId }, { timeoutMs: 10_000 });
  const { end } = await gathered([first, ...(await within(rest))]);
  assert.equal(end.state, Job_State.CANCELLED);
});

check("a watch that is not read for long is not taken for dead", async (server) => {
  let streams = 0;
  const jobs = server.jobs(hears("WatchJob", () => streams++));
  const { job } = await submit(jobs, "sleep", { seconds: 0.2 });
  async function* slow(): AsyncGenerator<WatchJobResponse> {
    let slowness = 3_500;
    for await (const message of watch(jobs, job!.jobId, { heartbeatMs: 1_000 })) {
      await sleep(slowness);
      slowness = 0;
      yield message;
    }
  }
  const { end } = await gathered(slow());
  assert.equal(end.state, Job_State.SUCCEEDED);
  assert.equal(streams, 1);
});

check("a watch stops where asking again does not help", async (server) => {
  const jobs = server.jobs();
  const nowhere = all(watch(jobs, "01987654-0000-7000-8000-000000000000"));
  assert.deepEqual(await refusal(nowhere), ["NotFound", "JOB_NOT_FOUND"]);
  const { job } = await submit(jobs, "sleep", { seconds: 0 });
  const ahead = all(watch(jobs, job!.jobId, { after: 99n }));
  assert.deepEqual(await refusal(ahead), ["FailedPrecondition", "SEQUENCE_AHEAD"]);
});

check("a watch ends with its signal, also between messages, and leaves the job alone", async (server) => {
  const jobs = server.jobs();
  await server.makeKnown();
  const { job } = await submit(jobs, "work");
  const stop = new AbortController();
  const messages = watch(jobs, job!.jobId, { signal: stop.signal });
  assert.equal((await messages.next()).value!.throughSequence, 1n);
  const next = messages.next();
  stop.abort(new Error("enough"));
  await assert.rejects(within(next), /enough/);
  await assert.rejects(watch(jobs, job!.jobId, { signal: stop.signal }).next(), /enough/);
  assert.equal((await jobs.get({ jobId: job!.jobId })).job!.state, Job_State.QUEUED);
});

check(
  "a watch comes back no sooner than the server asks for",
  async (server) => {
    const tries: number[] = [];
    await server.makeKnown();
    const { job } = await submit(server.jobs(), "work");
    const first = watch(server.jobs(), job!.jobId);
    await first.next();
    const jobs = server.jobs(hears("WatchJob", () => tries.push(performance.now())));
    const second = watch(jobs, job!.jobId);
    const message = second.next();
    const error = await all(server.jobs().watchJob({ jobId: job!.jobId })).catch(ConnectError.from);
    assert.equal((error as ConnectError).code, Code.ResourceExhausted);
    const [info] = (error as ConnectError).findDetails(RetryInfoSchema);
    const askedMs = 1_000 * Number(info!.retryDelay!.seconds);
    assert.ok(askedMs >= 1_000);
    await eventually(() => tries.length === 1);
    await sleep(100); // It has been refused by now; where not, it has its place, and comes back no more.
    await first.return();
    assert.equal((await within(message)).value!.throughSequence, 1n);
    assert.equal(tries.length, 2);
    assert.ok(tries[1]! - tries[0]! >= askedMs, `${tries}`);
    await second.return();
  },
  "--watchers-max=1",
);

check("a key that is used twice leads to the same job", async (server) => {
  const jobs = server.jobs();
  const first = await submit(jobs, "sleep", { seconds: 0 }, { idempotencyKey: "once" });
  const again = await submit(jobs, "sleep", { seconds: 0 }, { idempotencyKey: "once" });
  assert.deepEqual([first.deduplicated, again.deduplicated], [false, true]);
  assert.equal(first.job!.jobId, again.job!.jobId);
  const other = submit(jobs, "sleep", { seconds: 1 }, { idempotencyKey: "once" });
  assert.deepEqual(await refusal(other), ["AlreadyExists", "IDEMPOTENCY_KEY_REUSED"]);
});

check("a submit whose answer was lost makes one job", async (server) => {
  const lost: string[] = [];
  const jobs = server.jobs(loses(lost, ["Submit"], "answers"));
  assert.ok((await submit(jobs, "sleep", { seconds: 0 })).deduplicated);
  assert.deepEqual(lost, ["Submit"]);
  assert.equal((await jobs.list({})).jobs.length, 1);
});

check("a submit waits for a server that is away, and not for ever", async (server) => {
  const jobs = server.jobs();
  await server.kill();
  const began = performance.now();
  assert.deepEqual(await refusal(submit(jobs, "sleep", {}, { deadlineMs: 1_000 })), ["Unavailable", undefined]);
  assert.ok(performance.now() - began < 2_000);
  const stopped = submit(jobs, "sleep", {}, { signal: AbortSignal.timeout(300) });
  await assert.rejects(stopped, { name: "TimeoutError" });
  const patient = submit(jobs, "sleep", { seconds: 0 });
  await server.start();
  assert.ok((await within(patient)).job!.jobId);
});

check("a submit whose time is over has a deadline all the same", async (server) => {
  const jobs = server.jobs();
  await submit(jobs, "sleep", { seconds: 0 });
  server.process.kill("SIGSTOP");
  try {
    const late = submit(jobs, "sleep", { seconds: 0 }, { deadlineMs: 0 });
    assert.deepEqual(await refusal(within(late)), ["DeadlineExceeded", undefined]);
  } finally {
    server.process.kill("SIGCONT");
  }
});

check("a submit that cannot be sent is refused at once", async (server) => {
  await assert.rejects(submit(server.jobs(), "sleep", { seconds: NaN }), RangeError);
  const wrong = { priority: "high" as unknown as number };
  await assert.rejects(submit(server.jobs(), "sleep", {}, wrong), /priority/);
});

check("a call ends at its deadline, and a connection whose pings are not answered is given up", async (server) => {
  const pings = { pingIntervalMs: 200, pingTimeoutMs: 1_000 };
  const broke = new Happening();
  let streams = 0;
  const counts = hears("WatchJob", () => ++streams > 1 && broke.happen());
  const jobs = createClient(JobService, connect(server.address, { ...pings, interceptors: [counts] }));
  await server.makeKnown();
  const { job } = await submit(jobs, "work");
  const watched = all(watch(jobs, job!.jobId, { heartbeatMs: 300_000 }));
  await eventually(() => streams === 1);
  // A quiet connection with ten times the pings that a server may call too many.
  await sleep(2_000);
  assert.equal(streams, 1);
  server.process.kill("SIGSTOP");
  try {
    const late = jobs.get({ jobId: job!.jobId }, { timeoutMs: 300 });
    assert.deepEqual(await refusal(late), ["DeadlineExceeded", undefined]);
    await broke.heard;
  } finally {
    server.process.kill("SIGCONT");
  }
  await eventually(() => jobs.cancel({ jobId: job!.jobId }, { timeoutMs: 1_000 }).catch(() => undefined));
  const { end } = await gathered(await within(watched));
  assert.equal(end.state, Job_State.CANCELLED);
});

check("what is no JSON is no payload, and all else comes back as it was", async () => {
  for (const value of [null, true, 0.5, "text", [1, { a: [] }], 2 ** 53]) {
    assert.deepEqual(fromPayload(toPayload(value)), value);
  }
  assert.equal(fromPayload(toPayload(undefined)), undefined);
  assert.deepEqual(fromPayload(toPayload(new Uint8Array([255]))), new Uint8Array([255]));
  assert.equal(fromPayload(toPayload(new Date(0))), "1970-01-01T00:00:00.000Z");
  for (const value of [Infinity, [NaN], 1n, () => 1]) assert.throws(() => toPayload(value));
});
