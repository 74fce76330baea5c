import dev.pacenote.client.Pacenote;
import dev.pacenote.client.Payloads;
import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobEvent;
import dev.pacenote.v1.WatchJobResponse;
import io.grpc.ManagedChannel;
import java.util.List;
import java.util.Map;

/** Submits a job for GreetWorker and watches it to its end. One argument: HOST:PORT. */
public final class SubmitAndWatch {
    public static void main(String[] arguments) throws InterruptedException {
        ManagedChannel channel = Pacenote.connect(arguments.length > 0 ? arguments[0] : "127.0.0.1:7430");
        Map<String, ?> input = Map.of("names", List.of("Ada", "Grace", "Edsger"));
        Job job = Pacenote.submit(channel, "greet", input).getJob();
        Job end = Pacenote.watch(channel, job.getJobId(), SubmitAndWatch::show);
        System.out.println(end.getState() + " " + Payloads.value(end.getResult()));
        channel.shutdown();
    }

    private static void show(WatchJobResponse message) {
        for (JobEvent event : message.getEvents().getEventsList()) {
            if (event.hasOutput()) {
                System.out.print(event.getOutput().getChunk().getText());
            } else if (event.hasProgress()) {
                System.out.printf("%3.0f%%%n", 100 * event.getProgress().getFraction());
            }
        }
    }
}
