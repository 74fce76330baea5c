"""Works through some pages: reads its input from stdin, tells what it does through PACENOTE_EVENTS."""

import json
import os
import sys
import time


def tell(**line):
    with open(os.environ["PACENOTE_EVENTS"], "a") as events:
        events.write(json.dumps(line) + "\n")


def start_page():
    """Goes on where an earlier attempt of the same job got to."""
    checkpoint = os.environ.get("PACENOTE_CHECKPOINT")
    if checkpoint is None:
        return 1
    with open(checkpoint) as file:
        return json.load(file)["done"] + 1


job = json.load(sys.stdin)
for page in range(start_page(), job["pages"] + 1):
    time.sleep(0.1)
    print(f"page {page}")
    tell(progress={"completed_units": page, "total_units": job["pages"], "unit": "pages"})
    tell(checkpoint={"done": page})
tell(result={"title": job["title"], "pages": job["pages"]})
