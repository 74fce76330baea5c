/** Submits a job for worker.ts and watches it to its end: `node dist/examples/submit-and-watch.js [HOST:PORT]`. */
import { createClient } from "@connectrpc/connect";
import { connect, fromPayload, submit, watch } from "pacenote";
import { Job_State, JobService } from "pacenote/v1";

const jobs = createClient(JobService, connect(process.argv[2]));
const { job } = await submit(jobs, "greet", { names: ["Ada", "Grace", "Edsger"] });
for await (const { content } of watch(jobs, job!.jobId)) {
  for (const { event } of content.case === "events" ? content.value.events : []) {
    if (event.case === "output") process.stdout.write(String(fromPayload(event.value.chunk)));
    if (event.case === "progress") console.log(`${Math.round(100 * (event.value.fraction ?? 0))}%`);
  }
  if (content.case === "snapshot") console.log(Job_State[content.value.state], fromPayload(content.value.result));
}
