import dev.pacenote.client.Attempt;
import dev.pacenote.client.Pacenote;
import dev.pacenote.client.Worker;
import dev.pacenote.v1.Progress;
import java.util.List;
import java.util.Map;

/** Does jobs of the type {@code greet} until it is told to stop. One argument: HOST:PORT. */
public final class GreetWorker {
    public static void main(String[] arguments) {
        String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:7430";
        Worker worker = new Worker(Pacenote.connect(address), Map.of("greet", GreetWorker::greet), 4);
        Runtime.getRuntime().addShutdownHook(new Thread(worker::close));
        System.out.println("waiting for jobs of the type greet");
        worker.run();
    }

    /** Greets everybody in {@code names}; goes on where an earlier attempt left off. */
    private static Object greet(Attempt attempt) throws InterruptedException {
        List<?> names = (List<?>) ((Map<?, ?>) attempt.input()).get("names");
        long done = attempt.lastCheckpoint() instanceof Long before ? before : 0;
        while (done < names.size()) {
            attempt.output("Hello, " + names.get((int) done) + "!\n");
            Thread.sleep(500); // The work. A cancel interrupts it, and so ends the attempt.
            done++;
            attempt.progress(Progress.newBuilder()
                    .setCompletedUnits(done).setTotalUnits(names.size()).setUnit("names").build());
            attempt.checkpoint(done);
        }
        return Map.of("greeted", done);
    }
}
