import dev.pacenote.client.Pacenote;
import dev.pacenote.client.Payloads;
import dev.pacenote.client.Watch;
import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobEvent;
import dev.pacenote.v1.WatchJobResponse;
import io.grpc.ManagedChannel;
import java.util.List;
import java.util.Map;

/** Submits a job for GreetWorker and watches it to its end. One argument: HOST:PORT. */
public final class SubmitAndWatch {
    public static void main(String[] arguments) {
        ManagedChannel channel = Pacenote.connect(arguments.length > 0 ? arguments[0] : "127.0.0.1:7430");
        Map<String, ?> input = Map.of("names", List.of("Ada", "Grace", "Edsger"));
        Job job = Pacenote.submit(channel, "greet", input).getJob();
        try (Watch watch = Pacenote.watch(channel, job.getJobId())) {
            while (watch.hasNext()) {
                WatchJobResponse message = watch.next();
                for (JobEvent event : message.getEvents().getEventsList()) {
                    if (event.hasOutput()) {
                        System.out.print(event.getOutput().getChunk().getText());
                    } else if (event.hasProgress()) {
                        System.out.printf("%3.0f%%%n", 100 * event.getProgress().getFraction());
                    }
                }
                job = message.getSnapshot(); // The last message is one, with the result.
            }
        }
        System.out.println(job.getState() + " " + Payloads.value(job.getResult()));
        channel.shutdown();
    }
}
