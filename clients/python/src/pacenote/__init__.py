"""Client and worker for Pacenote: submit jobs, watch them to their end, and do them."""

from pacenote.client import connect, from_payload, submit, to_payload, watch
from pacenote.worker import Attempt, Fail, LeaseLost, Snooze, Worker

__all__ = [
    "Attempt",
    "Fail",
    "LeaseLost",
    "Snooze",
    "Worker",
    "connect",
    "from_payload",
    "submit",
    "to_payload",
    "watch",
]
