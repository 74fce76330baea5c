/** A worker to be stopped by a test: says its attempt, then whether it was lost, then its token. */
import { connect, LeaseLost, Worker } from "pacenote";

import { aborted } from "./server.js";

const worker = new Worker(connect(process.argv[2]), {
  leaseMs: 5_000,
  handlers: {
    work: async (attempt) => {
      console.log(`attempt ${attempt.job.attempt}`);
      await aborted(attempt.signal);
      await attempt.output("too late").catch((error) => console.log(error instanceof LeaseLost ? "lost" : `${error}`));
      console.log(attempt.leaseToken);
      return "first";
    },
  },
});
process.stdin.on("end", () => void worker.drain()).resume();
await worker.run();
