package dev.pacenote.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.pacenote.v1.Job;
import dev.pacenote.v1.JobEvent;
import dev.pacenote.v1.WatchJobResponse;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.LongStream;

/** All events of a watch from the beginning, without a hole or a double, and the job at its end. */
record Log(List<JobEvent> events, Job end) {
    static Log of(Iterator<WatchJobResponse> messages) {
        return of(messages, message -> {});
    }

    static Log of(Iterator<WatchJobResponse> messages, Consumer<WatchJobResponse> each) {
        List<JobEvent> events = new ArrayList<>();
        int snapshots = 0;
        WatchJobResponse last = null;
        while (messages.hasNext()) {
            last = messages.next();
            events.addAll(last.getEvents().getEventsList());
            snapshots += last.hasSnapshot() ? 1 : 0;
            each.accept(last);
        }
        assertEquals(LongStream.rangeClosed(1, events.size()).boxed().toList(),
                events.stream().map(JobEvent::getSequence).toList());
        assertEquals(1, snapshots);
        Job end = last.getSnapshot();
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
