/** Does jobs of the type `greet` until it is told to stop: `node dist/examples/worker.js [HOST:PORT]`. */
import { setTimeout as sleep } from "node:timers/promises";

import { type Attempt, connect, Worker } from "pacenote";

/** Greets everybody in `names`; goes on where an earlier attempt left off. */
async function greet(attempt: Attempt): Promise<{ greeted: number }> {
  const { names } = attempt.input as { names: string[] };
  let done = (attempt.lastCheckpoint as number | undefined) ?? 0;
  while (done < names.length && !attempt.signal.aborted) {
    await attempt.output(`Hello, ${names[done]}!\n`);
    await sleep(500, undefined, { signal: attempt.signal }); // The work.
    done++;
    await attempt.progress({ completedUnits: BigInt(done), totalUnits: BigInt(names.length), unit: "names" });
    await attempt.checkpoint(done);
  }
  return { greeted: done };
}

const worker = new Worker(connect(process.argv[2]), { handlers: { greet }, concurrency: 4 });
for (const signal of ["SIGTERM", "SIGINT"] as const) process.once(signal, () => void worker.drain());
console.log("waiting for jobs of the type greet");
await worker.run();
