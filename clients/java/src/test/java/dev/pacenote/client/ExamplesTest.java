package dev.pacenote.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.BufferedReader;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

@Timeout(60)
class ExamplesTest {
    private static Process start(String example, String address) throws IOException {
        String java = Path.of(System.getProperty("java.home"), "bin", "java").toString();
        String file = "examples/" + example + ".java";
        return new ProcessBuilder(
                        java, "-XX:TieredStopAtLevel=1", "-cp", System.getProperty("java.class.path"), file, address)
                .redirectError(ProcessBuilder.Redirect.INHERIT)
                .start();
    }

    @Test
    void the_examples_run_and_the_worker_ends_with_sigterm(@TempDir Path folder) throws Exception {
        try (Server server = new Server(folder)) {
            Process worker = start("GreetWorker", server.address);
            try (BufferedReader told = worker.inputReader()) {
                assertEquals("waiting for jobs of the type greet", told.readLine());
                Server.happens(() -> server.isKnown("greet"));
                Process watch = start("SubmitAndWatch", server.address);
                List<String> lines = watch.inputReader().lines().toList();
                assertEquals(0, watch.waitFor());
                assertEquals(
                        List.of("Hello, Ada!", "Hello, Grace!", "Hello, Edsger!"),
                        lines.stream().filter(line -> line.startsWith("Hello")).toList());
                assertEquals(
                        List.of("100%", "STATE_SUCCEEDED {greeted=3}"), lines.subList(lines.size() - 2, lines.size()));
                worker.destroy();
                assertTrue(worker.waitFor(20, TimeUnit.SECONDS));
                assertEquals(143, worker.exitValue()); // What a JVM answers that SIGTERM has ended in order.
            } finally {
                worker.destroyForcibly();
            }
        }
    }
}
