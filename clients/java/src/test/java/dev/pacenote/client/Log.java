package dev.pacenote.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobEvent;
import dev.pacenote.v1.WatchJobResponse;
import io.grpc.ManagedChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.LongStream;

/** All events of a watch from the beginning, without a hole or a double, and the job at its end. */
record Log(List<JobEvent> events, Job end) {
    static Log watch(ManagedChannel channel, String jobId) {
        List<WatchJobResponse> messages = new ArrayList<>();
        try {
            Job end = Pacenote.watch(channel, jobId, messages::add);
            assertEquals(messages.get(messages.size() - 1).getSnapshot(), end);
        } catch (InterruptedException interrupt) {
            throw new AssertionError(interrupt);
        }
        return of(messages);
    }

    static Log of(List<WatchJobResponse> messages) {
        List<JobEvent> events = messages.stream()
                .flatMap(message -> message.getEvents().getEventsList().stream()).toList();
        assertEquals(LongStream.rangeClosed(1, events.size()).boxed().toList(),
                events.stream().map(JobEvent::getSequence).toList());
        assertEquals(1, messages.stream().filter(WatchJobResponse::hasSnapshot).count());
        Job end = messages.get(messages.size() - 1).getSnapshot();
        assertTrue(end.hasEndTime());
        assertEquals(events.size(), end.getLastSequence());
        return new Log(events, end);
    }

    String output() {
        return output("stdout");
    }

    String output(String stream) {
        StringBuilder text = new StringBuilder();
        for (JobEvent event : events) {
            if (event.hasOutput() && event.getOutput().getStream().equals(stream)) {
                text.append(event.getOutput().getChunk().getText());
            }
        }
        return text.toString();
    }

    Object result() {
        return Payloads.value(end.getResult());
    }
}
