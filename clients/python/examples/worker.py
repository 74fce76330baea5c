"""Does jobs of the type `greet` until it is told to stop: `python worker.py [HOST:PORT]`."""

import signal
import sys
import threading

from pacenote import Attempt, Worker, connect


def greet(attempt: Attempt) -> dict[str, int]:
    """Greets everybody in `names`; goes on where an earlier attempt left off."""
    names = attempt.input["names"]
    done = attempt.last_checkpoint or 0
    while done < len(names) and not (attempt.cancelled.is_set() or attempt.lost.is_set()):
        attempt.output(f"Hello, {names[done]}!\n")
        attempt.cancelled.wait(0.5)  # The work.
        done += 1
        attempt.progress(completed_units=done, total_units=len(names), unit="names")
        attempt.checkpoint(done)
    return {"greeted": done}


worker = Worker(connect(*sys.argv[1:]), handlers={"greet": greet}, concurrency=4)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: threading.Thread(target=worker.drain).start())
print("waiting for jobs of the type greet", flush=True)
worker.run()
