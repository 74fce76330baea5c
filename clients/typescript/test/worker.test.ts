/** Workers against a real server, with calls lost on the way, and leases that go to somebody else. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { type Attempt, connect, Fail, fromPayload, LeaseLost, Retry, Snooze, submit, toPayload } from "pacenote";
import { watch, Worker } from "pacenote";
import { Job_State, JobService, type LeaseResponse, LogLine_Level } from "pacenote/v1";

import { aborted, all, check, eventually, gathered, Happening, hears, loses, of, output } from "./server.js";
import { PATIENCE_MS, refusal, type Server, within } from "./server.js";

check("all that a worker tells is seen in the watch", async (server) => {
  async function handler(attempt: Attempt) {
    assert.deepEqual(attempt.input, { rows: 4, name: "Ada" });
    await attempt.log("begins", "WARN", { of: "Ada" });
    await attempt.progress({ completedUnits: 1n, totalUnits: 4n, unit: "rows", phase: "read" });
    await attempt.output("one ");
    await attempt.output("zwölf");
    await attempt.output("other", "tokens");
    await attempt.checkpoint({ row: 1 });
    await attempt.progress(0.75);
    return { rows: 4, text: "fertig", half: 0.5 };
  }
  await server.working(handler, { workerId: "worker-1" });
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work", { rows: 4, name: "Ada" }, { labels: { of: "test" } });
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([end.state, end.workerId, end.labels], [Job_State.SUCCEEDED, "worker-1", { of: "test" }]);
  assert.deepEqual(fromPayload(end.result), { rows: 4, text: "fertig", half: 0.5 });
  assert.deepEqual(fromPayload(end.checkpoint), { row: 1 });
  assert.deepEqual([output(events), output(events, "tokens")], ["one zwölf", "other"]);
  const lines = of("log", events).map(({ message, level, fields }) => [message, level, fields]);
  assert.deepEqual(lines, [["begins", LogLine_Level.WARN, { of: "Ada" }]]);
  assert.equal(of("progress", events).at(-1)!.fraction, 0.75);
  assert.equal(end.progress!.fraction, 0.75);
});

for (const what of ["requests", "answers"] as const) {
  check(`reports and ends whose ${what} are lost are stored once, in the order of the calls`, async (server) => {
    // Not awaited: they are told one at a time all the same, and all before the end.
    function handler(attempt: Attempt) {
      for (let number = 0; number < 4; number++) void attempt.output(`${number} `);
      return "done";
    }
    const lost: string[] = [];
    await server.working(handler, {}, loses(lost, ["Report", "Finish"], what));
    const jobs = server.jobs();
    const { job } = await submit(jobs, "work");
    const { events, end } = await gathered(watch(jobs, job!.jobId));
    assert.deepEqual([output(events), fromPayload(end.result), end.attempt], ["0 1 2 3 ", "done", 1]);
    await eventually(() => lost.length === 5); // The watch may hear of the end before the worker does.
    assert.deepEqual(lost, [...Array(4).fill("Report"), "Finish"]);
  });
}

check("an output larger than a chunk arrives whole", async (server) => {
  const text = "äöü€😀".repeat(100_000);
  await server.working((attempt) => attempt.output(text));
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.ok(output(events) === text);
  assert.equal(end.result, undefined);
});

check("a worker outlives a restart of its server", async (server) => {
  const told = new Happening();
  const goOn = new Happening();
  async function handler(attempt: Attempt) {
    for (let number = 0; number < 10; number++) {
      await attempt.output(`${number} `);
      if (number !== 4) continue;
      told.happen();
      await goOn.promise;
    }
    return attempt.job.attempt;
  }
  await server.working(handler);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  const watched = gathered(watch(jobs, job!.jobId));
  await told.heard;
  await server.kill();
  goOn.happen(); // It tells more while the server is away.
  await server.start();
  const { events, end } = await within(watched);
  assert.deepEqual([output(events), fromPayload(end.result)], ["0 1 2 3 4 5 6 7 8 9 ", 1]);
  // And it goes on leasing.
  const again = await submit(jobs, "work");
  assert.equal((await gathered(watch(jobs, again.job!.jobId))).end.state, Job_State.SUCCEEDED);
});

check("a worker and a watch outlive connections that are reset", async (server) => {
  const { address, reset } = await server.proxy();
  async function handler(attempt: Attempt) {
    for (let number = 0; number < 20; number++) {
      if (number % 4 === 3) reset();
      await attempt.output(`${number} `);
    }
  }
  await server.makeKnown();
  const worker = new Worker(connect(address), { handlers: { work: handler } });
  const run = worker.run();
  server.defer(() => worker.drain(0));
  const jobs = createClient(JobService, connect(address));
  const { job } = await submit(jobs, "work");
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.equal(output(events), [...Array(20).keys()].map((number) => `${number} `).join(""));
  assert.deepEqual([end.state, end.attempt], [Job_State.SUCCEEDED, 1]);
  await worker.drain();
  await within(run);
});

check("heartbeats keep a lease although one in two is lost, and bring a cancel", async (server) => {
  const begun = new Happening();
  let sent = 0;
  let heard: unknown[] = [];
  async function handler(attempt: Attempt) {
    begun.happen();
    await aborted(attempt.signal); // It tells nothing meanwhile.
    heard = [attempt.cancelled, attempt.lost, attempt.cancelReason, attempt.signal.reason.name];
    return "too late";
  }
  const losesSome = hears("ExtendLeases", () => {
    if (sent++ % 2 === 0) throw new ConnectError("the connection broke", Code.Unavailable);
  });
  await server.working(handler, {}, losesSome);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  await begun.heard;
  const began = performance.now();
  await eventually(() => performance.now() - began > 7_000); // The lease of 5 s would be over.
  const running = (await jobs.get({ jobId: job!.jobId })).job!;
  assert.deepEqual([running.state, running.attempt], [Job_State.RUNNING, 1]);
  await jobs.cancel({ jobId: job!.jobId, reason: "enough" });
  const { end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([end.state, end.attempt], [Job_State.CANCELLED, 1]);
  assert.deepEqual(heard, [true, false, "enough", "AbortError"]);
});

check("a worker that is cut off stops its handler before another one may have the job", async (server) => {
  const begun = new Happening();
  const over = new Happening<{ attempt: Attempt; at: number }>();
  async function handler(attempt: Attempt) {
    begun.happen();
    await aborted(attempt.signal);
    over.happen({ attempt, at: performance.now() });
    await assert.rejects(attempt.output("too late"), LeaseLost);
    return "first";
  }
  // Neither an answer nor an error, as of a network that is gone, but for the call's own deadline.
  const silent = hears("ExtendLeases", (signal) => once(signal, "abort").then(() => signal.throwIfAborted()));
  await server.working(handler, {}, silent);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  await begun.heard;
  const other = server.lease("the other one").then((answer) => ({ answer, at: performance.now() }));
  const { attempt, at } = await over.heard;
  assert.deepEqual([attempt.lost, attempt.cancelled], [true, false]);
  const { answer, at: leasedAt } = await within(other);
  assert.ok(at < leasedAt - 500, `stopped at ${at}, leased at ${leasedAt}`);
  const [leased] = answer.leasedJobs;
  assert.deepEqual([leased!.job!.jobId, leased!.job!.attempt], [job!.jobId, 2]);
  const service = server.worker();
  const result = (value: string) => ({ case: "result" as const, value: toPayload(value) });
  const late = service.finish({ leaseToken: attempt.leaseToken, outcome: result("first") });
  assert.deepEqual(await refusal(late), ["FailedPrecondition", "STALE_LEASE"]);
  await service.finish({ leaseToken: leased!.leaseToken, outcome: result("second") });
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([fromPayload(end.result), end.attempt, output(events)], ["second", 2, ""]);
});

check("a worker whose server is away for longer than the term stops its handler, and keeps nothing", async (server) => {
  const begun = new Happening();
  const lost = new Happening<boolean>();
  const again = new Happening();
  async function handler(attempt: Attempt) {
    if (attempt.job.attempt > 1) return again.happen();
    begun.happen();
    // It waits in the call, for a server that is away.
    await assert.rejects(
      eventually(() => attempt.progress(0.5).then(() => false)),
      LeaseLost,
    );
    lost.happen(attempt.lost && attempt.signal.aborted);
    await again.promise; // It does not stop, and must not keep the job from another attempt.
    return "first";
  }
  await server.working(handler, { concurrency: 2 });
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  await begun.heard;
  await server.kill();
  assert.ok(await lost.heard);
  await server.start();
  await again.heard;
  const { end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([end.state, end.result, end.attempt], [Job_State.SUCCEEDED, undefined, 2]);
});

check("what comes after a wait of more than a term is begun and kept", async (server) => {
  const calls: string[] = [];
  const begun = new Happening<string[]>();
  async function handler(attempt: Attempt) {
    begun.happen([...calls]);
    await eventually(() => calls.length >= 6 || attempt.signal.aborted); // A Lease, and renewals every 5/3 s.
    return attempt.job.attempt;
  }
  const hearing = ["Lease", "ExtendLeases"].map((method) => hears(method, () => calls.push(method)));
  await server.working(handler, {}, ...hearing);
  await eventually(() => calls.length === 1);
  await sleep(5_500);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  // By the call that has waited, and not renewed first: its lease began when the job was claimed.
  assert.deepEqual(await begun.heard, ["Lease"]);
  const { end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([end.state, fromPayload(end.result)], [Job_State.SUCCEEDED, 1]);
});

check("what arrives after its term is handed back and not begun", async (server) => {
  const begun: unknown[] = [];
  let finishes = 0;
  const { holds, answered, release } = holding();
  const counts = hears("Finish", () => finishes++);
  await server.working((attempt) => void begun.push(attempt.input), {}, holds, counts);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work", "held up");
  await answered.heard;
  const [leased] = (await server.lease("the other one")).leasedJobs;
  assert.deepEqual([leased!.job!.jobId, leased!.job!.attempt], [job!.jobId, 2]);
  release.happen();
  // Another job, by the same worker, so that it has had the time to begin the first one.
  const next = await submit(jobs, "work", "next");
  await gathered(watch(jobs, next.job!.jobId));
  assert.deepEqual([begun, finishes], [["next"], 2]);
  const { leaseToken } = leased!;
  await server.worker().finish({ leaseToken, outcome: { case: "result", value: toPayload("other") } });
  const { end } = await gathered(watch(jobs, job!.jobId));
  assert.equal(fromPayload(end.result), "other");
});

check("what is on its way when a drain begins is handed back", async (server) => {
  const { holds, answered, release } = holding();
  const worker = await server.working(() => "begun", {}, holds);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  await answered.heard;
  const drained = worker.drain(0);
  await sleep(100); // For a cancel that does not wait: the job would be nobody's until its lease ends.
  release.happen();
  await within(drained);
  const after = (await jobs.get({ jobId: job!.jobId })).job!;
  assert.deepEqual([after.state, after.attemptsCharged], [Job_State.QUEUED, 0]);
});

/** Holds the first answer with work until it is released, and loses it where the call is cancelled before. */
function holding() {
  const answered = new Happening();
  const release = new Happening();
  const holds: Interceptor = (next) => async (request) => {
    const answer = await next(request);
    if (request.method.name === "Lease" && !answer.stream && (answer.message as LeaseResponse).leasedJobs.length > 0) {
      answered.happen();
      await Promise.race([release.promise, once(request.signal, "abort")]);
      request.signal.throwIfAborted();
    }
    return answer;
  };
  return { holds, answered, release };
}

check("a worker that was stopped loses its job to another one", async (server) => {
  await server.makeKnown();
  const stopped = spawn(process.execPath, [here("stopped-worker.js"), server.address], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  server.defer(async () => stopped.kill("SIGKILL"));
  const lines = createInterface({ input: stopped.stdout })[Symbol.asyncIterator]();
  const line = async () => (await within(lines.next())).value;
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  assert.equal(await line(), "attempt 1");
  stopped.kill("SIGSTOP");
  const [leased] = (await server.lease("the other one")).leasedJobs;
  assert.deepEqual([leased!.job!.jobId, leased!.job!.attempt], [job!.jobId, 2]);
  stopped.kill("SIGCONT");
  assert.equal(await line(), "lost");
  const service = server.worker();
  const late = service.report({ leaseToken: await line(), events: [{ event: { case: "log", value: {} } }] });
  assert.deepEqual(await refusal(late), ["FailedPrecondition", "STALE_LEASE"]);
  await service.finish({ leaseToken: leased!.leaseToken, outcome: { case: "result", value: toPayload("second") } });
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([fromPayload(end.result), output(events)], ["second", ""]);
  stopped.stdin.end();
  assert.deepEqual(await within(once(stopped, "exit")), [0, null]);
});

check("nothing is told of a job that is not the worker's any more", async (server) => {
  const told = new Happening<boolean>();
  async function handler(attempt: Attempt) {
    const { leaseToken } = attempt;
    await server.worker().finish({ leaseToken, outcome: { case: "result", value: toPayload("other") } });
    void attempt.log("nobody awaits this"); // Which must not end the process.
    await assert.rejects(attempt.progress(0.5), LeaseLost);
    told.happen(attempt.lost && attempt.signal.aborted);
    return "mine";
  }
  await server.working(handler);
  const jobs = server.jobs();
  const { job } = await submit(jobs, "work");
  const { events, end } = await gathered(watch(jobs, job!.jobId));
  assert.ok(await told.heard);
  assert.equal(fromPayload(end.result), "other");
  assert.deepEqual([of("progress", events), of("log", events)], [[], []]);
});

check("an attempt ends as its handler does", async (server) => {
  async function handler(attempt: Attempt): Promise<unknown> {
    if (attempt.job.attempt > 1) return ["again", attempt.lastCheckpoint ?? null];
    switch (attempt.input) {
      case "snooze":
        await attempt.checkpoint("so far");
        throw new Snooze(10);
      case "retry":
        throw new Retry(10, "not now", "BUSY");
      case "fail":
        throw new Fail("NO_SUCH_FILE", "it is not there");
      case "bug":
        return (undefined as unknown as number[]).length;
      case "no error":
        throw Object.create(null);
      case "refused":
        await attempt.progress(-1);
        return;
      case "wrong type":
        await attempt.progress({ completedUnits: 1.5 as unknown as bigint });
        return;
      case "no JSON":
        return 1n;
      case "too large":
        return "x".repeat(1 << 20);
      case "bad reason":
        throw new Fail("no good reason");
      default:
        return new Uint8Array([255]);
    }
  }
  await server.working(handler, { concurrency: 3 });
  const jobs = server.jobs();
  async function ends(input: string): Promise<unknown[]> {
    const retryPolicy = { initialBackoff: durationFromMs(1) };
    const { job } = await submit(jobs, "work", input, { retryPolicy });
    const { events, end } = await gathered(watch(jobs, job!.jobId));
    const [attempt] = of("attemptEnd", events);
    const error = attempt ? attempt.error : end.error;
    return [Job_State[end.state], end.attemptsCharged, error?.reason, error?.message, fromPayload(end.result)];
  }
  const again = ["again", null];
  assert.deepEqual(await ends("snooze"), ["SUCCEEDED", 1, undefined, undefined, ["again", "so far"]]);
  assert.deepEqual(await ends("retry"), ["SUCCEEDED", 2, "BUSY", "not now", again]);
  assert.deepEqual(await ends("fail"), ["FAILED", 1, "NO_SUCH_FILE", "it is not there", undefined]);
  const bug = "TypeError: Cannot read properties of undefined (reading 'length')";
  assert.deepEqual(await ends("bug"), ["SUCCEEDED", 2, "HANDLER_ERROR", bug, again]);
  for (const input of ["no error", "refused", "wrong type"]) {
    assert.deepEqual((await ends(input)).slice(0, 3), ["SUCCEEDED", 2, "HANDLER_ERROR"], input);
  }
  for (const input of ["no JSON", "too large"]) {
    assert.deepEqual((await ends(input)).slice(0, 3), ["FAILED", 1, "RESULT_INVALID"], input);
  }
  assert.deepEqual((await ends("bad reason")).slice(0, 3), ["FAILED", 1, "HANDLER_ERROR"]);
  assert.deepEqual((await ends("bytes"))[4], new Uint8Array([255]));
});

check("a drain waits for what ends and hands back the rest", async (server) => {
  const release = new Happening();
  const lost = new Happening();
  let begun = 0;
  async function handler(attempt: Attempt) {
    begun++;
    if (attempt.input === "quick") {
      await aborted(attempt.draining);
      return "done";
    }
    await release.promise;
    assert.ok(attempt.signal.aborted);
    await assert.rejects(attempt.output("too late"), LeaseLost);
    lost.happen();
    return;
  }
  const worker = await server.working(handler, { concurrency: 3 });
  const jobs = server.jobs();
  const [quick, slow] = [await submit(jobs, "work", "quick"), await submit(jobs, "work", "slow")];
  await eventually(() => begun === 2);
  await worker.drain(500);
  const get = async (jobId: string) => (await jobs.get({ jobId })).job!;
  assert.equal((await get(quick.job!.jobId)).state, Job_State.SUCCEEDED);
  const handedBack = await get(slow.job!.jobId);
  assert.deepEqual([handedBack.state, handedBack.attemptsCharged], [Job_State.QUEUED, 0]);
  release.happen();
  await lost.heard;
  const waiting = await submit(jobs, "work", "quick");
  assert.equal((await get(waiting.job!.jobId)).state, Job_State.QUEUED);
});

check("a drain in the middle of much work leaves nothing held", async (server) => {
  await server.makeKnown();
  const jobs = server.jobs();
  await jobs.batchSubmit({ requests: Array(300).fill({ type: "work" }) });
  for (let round = 0; round < 4; round++) {
    let done = 0;
    const worker = await server.working(() => void done++, { concurrency: 3 });
    await eventually(() => done > 10);
    await worker.drain(5_000);
    // Handed back, or done; and there is more to do.
    assert.equal((await jobs.list({ states: [Job_State.RUNNING] })).jobs.length, 0);
  }
  const waiting = (await jobs.list({ states: [Job_State.QUEUED], pageSize: 1_000 })).jobs;
  assert.ok(waiting.length > 0 && waiting.every(({ attemptsCharged }) => attemptsCharged === 0));
});

check("as many jobs run at once as a worker has room for", async (server) => {
  let begun = 0;
  const waiting: (() => void)[] = [];
  function handler(): Promise<void> {
    begun++;
    return new Promise((resolve) => waiting.push(resolve));
  }
  await server.makeKnown();
  const jobs = server.jobs();
  const submitted = await Promise.all(Array.from({ length: 9 }, () => submit(jobs, "work")));
  await server.working(handler, { concurrency: 3 });
  for (let count = 3; count <= 9; count++) {
    await eventually(() => begun === count);
    assert.equal((await jobs.list({ states: [Job_State.RUNNING] })).jobs.length, 3);
    assert.equal(waiting.length, 3);
    waiting.shift()!();
  }
  waiting.forEach((end) => end());
  for (const { job } of submitted) {
    const { end } = await gathered(watch(jobs, job!.jobId));
    assert.deepEqual([end.state, end.attempt], [Job_State.SUCCEEDED, 1]);
  }
});

check("leases of a store that is gone take no other along", async (server) => {
  const begun: string[] = [];
  let lost = false;
  async function handler(attempt: Attempt) {
    begun.push(attempt.input as string);
    await aborted(attempt.signal);
    if (attempt.input === "old") lost = attempt.lost;
  }
  // Long, so that it is not the worker's own clock that ends the old one.
  await server.working(handler, { concurrency: 2, leaseMs: 9_000 });
  const jobs = server.jobs();
  await submit(jobs, "work", "old");
  await eventually(() => begun.length === 1);
  await server.kill();
  for (const name of await readdir(server.folder)) {
    if (name.startsWith("pacenote.db")) rmSync(join(server.folder, name), { recursive: true });
  }
  await server.start();
  await eventually(() => server.isKnown("work")); // By the worker, which has come back.
  const { job } = await submit(jobs, "work", "new");
  await eventually(() => begun.length === 2 && lost);
  await jobs.cancel({ jobId: job!.jobId });
  const { end } = await gathered(watch(jobs, job!.jobId));
  assert.deepEqual([end.state, end.attempt], [Job_State.CANCELLED, 1]);
});

check("a worker that is refused says so", async (server) => {
  const worker = new Worker(connect(server.address), { handlers: { "no//name": () => 1 } });
  assert.equal((await refusal(worker.run()))[0], "InvalidArgument");
  assert.throws(() => new Worker(connect(server.address), { handlers: {}, concurrency: 0 }), RangeError);
});

check("the examples run, and the worker ends with SIGTERM", async (server) => {
  const worker = example(server, "worker.js");
  assert.equal(await worker.next(), "waiting for jobs of the type greet");
  await eventually(() => server.isKnown("greet"));
  const told = example(server, "submit-and-watch.js");
  const lines = await within(all(told.lines));
  assert.deepEqual(
    lines.filter((line) => line.startsWith("Hello")),
    ["Hello, Ada!", "Hello, Grace!", "Hello, Edsger!"],
  );
  assert.deepEqual(lines.slice(-2), ["100%", "SUCCEEDED { greeted: 3 }"]);
  assert.deepEqual(await within(told.exit), [0, null]);
  worker.process.kill("SIGTERM");
  assert.deepEqual(await within(worker.exit), [0, null]);
});

function example(server: Server, name: string) {
  const path = here(`../examples/${name}`);
  const child = spawn(process.execPath, [path, server.address], {
    stdio: ["ignore", "pipe", "inherit"],
    timeout: 2 * PATIENCE_MS,
  });
  server.defer(async () => child.kill("SIGKILL"));
  const exit = once(child, "exit");
  const lines = createInterface({ input: child.stdout });
  const iterator = lines[Symbol.asyncIterator]();
  return { process: child, exit, lines, next: async () => (await within(iterator.next())).value };
}

function here(path: string): string {
  return fileURLToPath(new URL(path, import.meta.url));
}
