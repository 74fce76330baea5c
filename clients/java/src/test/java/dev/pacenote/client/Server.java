package dev.pacenote.client;

import dev.pacenote.v1.JobServiceGrpc;
import dev.pacenote.v1.LeaseRequest;
import dev.pacenote.v1.LeaseResponse;
import dev.pacenote.v1.SubmitRequest;
import dev.pacenote.v1.WorkerServiceGrpc;
import io.grpc.ClientInterceptor;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Assertions;
import org.junit.jupiter.api.Assumptions;

/** A server of a test's own, on a free port, that can be killed, and started again on the same port and store. */
final class Server implements AutoCloseable {
    /** How long anything may take that a test waits for. */
    static final Duration SECONDS = Duration.ofSeconds(20);
    private static final Pattern LISTENING = Pattern.compile("^listening on (\\S+)$", Pattern.MULTILINE);

    final Path folder;
    String address = "127.0.0.1:0";
    private final File binary;
    private final List<ManagedChannel> channels = new ArrayList<>();
    private Process process;

    Server(Path folder) {
        this.folder = folder;
        String path = System.getenv().getOrDefault("PACENOTE", "");
        binary = new File(path).getAbsoluteFile();
        if (path.isEmpty() || !binary.canExecute()) {
            String message = "NOTHING WAS CHECKED: PACENOTE='" + path + "' is no program";
            Assertions.assertNotEquals("true", System.getenv("CI"), message);
            System.err.println(message);
            Assumptions.abort(message);
        }
        start();
    }

    void start() {
        try {
            Path log = folder.resolve("server.log");
            ProcessBuilder builder = new ProcessBuilder(binary.getPath(), "serve", "--listen", address)
                    .directory(folder.toFile())
                    .redirectError(log.toFile());
            builder.environment().keySet().removeIf(name -> name.startsWith("PACENOTE"));
            process = builder.start();
            address = eventually(() -> {
                try {
                    String told = Files.readString(log);
                    Assertions.assertTrue(process.isAlive(), told);
                    Matcher matcher = LISTENING.matcher(told);
                    return matcher.find() ? matcher.group(1) : null;
                } catch (IOException error) {
                    throw new AssertionError(error);
                }
            });
        } catch (IOException error) {
            throw new AssertionError(error);
        }
    }

    void kill() {
        process.destroyForcibly();
        happens(() -> !process.isAlive());
    }

    /** Sends a signal, as STOP. */
    void signal(String name) {
        try {
            Process kill = new ProcessBuilder("kill", "-" + name, Long.toString(process.pid())).start();
            Assertions.assertTrue(kill.waitFor(20, TimeUnit.SECONDS) && kill.exitValue() == 0);
        } catch (IOException | InterruptedException error) {
            throw new AssertionError(error);
        }
    }

    /** A channel of its own. */
    ManagedChannel channel(ClientInterceptor... interceptors) {
        ManagedChannel channel = Pacenote.connect(address, interceptors);
        channels.add(channel);
        return channel;
    }

    JobServiceGrpc.JobServiceBlockingStub jobs() {
        return JobServiceGrpc.newBlockingStub(channel()).withDeadlineAfter(SECONDS);
    }

    WorkerServiceGrpc.WorkerServiceBlockingStub workers() {
        return WorkerServiceGrpc.newBlockingStub(channel()).withDeadlineAfter(SECONDS.multipliedBy(2));
    }

    /** Asks for one job of the type {@code work}, for 5 s. Whoever has asked once makes the type known. */
    LeaseResponse lease(String workerId, Duration wait) {
        return workers().lease(LeaseRequest.newBuilder()
                .setWorkerId(workerId).addTypes("work")
                .setLease(Calls.proto(Duration.ofSeconds(5))).setWait(Calls.proto(wait)).build());
    }

    boolean isKnown(String type) {
        try {
            return jobs().submit(SubmitRequest.newBuilder().setType(type).setValidateOnly(true).build()) != null;
        } catch (StatusRuntimeException error) {
            return false;
        }
    }

    static void happens(Supplier<Boolean> look) {
        eventually(() -> look.get() ? true : null);
    }

    static void happens(CountDownLatch latch) {
        happens(() -> latch.getCount() == 0);
    }

    /** What it answers, once it is anything. */
    static <A> A eventually(Supplier<A> look) {
        long end = System.nanoTime() + SECONDS.toNanos();
        while (true) {
            A found = look.get();
            if (found != null) {
                return found;
            }
            Assertions.assertTrue(System.nanoTime() < end, "it did not happen in time");
            try {
                Thread.sleep(20);
            } catch (InterruptedException interrupt) {
                throw new AssertionError(interrupt);
            }
        }
    }

    @Override
    public void close() {
        channels.forEach(ManagedChannel::shutdownNow);
        process.destroyForcibly();
        happens(() -> !process.isAlive());
    }
}
