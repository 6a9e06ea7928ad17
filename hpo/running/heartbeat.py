"""A thread that records in the database that a trial's worker is alive, and detects when its work stalls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ..database.retry import PAUSES

logger = logging.getLogger(__name__)


class Heartbeat:
    """Sends heartbeats from `start` to `stop`, through any outage, until the claim is lost.

    Args:
        send: writes one heartbeat (stage, epoch) and returns whether the claim is still ours.
        seconds: time between two heartbeats.
        stall_seconds: the work has stalled after this long without `progress`; outages do not count.
        on_stall: called once, in the heartbeat's thread, when the work has stalled, even if the claim is lost.
        name: the thread's name.
    """

    def __init__(
        self,
        send: Callable[[int, int], bool],
        *,
        seconds: float,
        stall_seconds: float,
        on_stall: Callable[[], None],
        name: str,
    ) -> None:
        self.lost = threading.Event()
        """Set when a heartbeat finds that the claim is lost."""
        self._send = send
        self._seconds = seconds
        self._pauses = replace(PAUSES, longest=min(seconds, PAUSES.longest))
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._position = (0, 0)
        self._progressed = time.monotonic()
        self._failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first heartbeat comes after `seconds`."""
        self._progressed = time.monotonic()
        self._thread.start()

    def progress(self, stage: int, epoch: int) -> None:
        """Record the progress; the next heartbeat sends it."""
        self._position = (stage, epoch)
        self._progressed = time.monotonic()

    def cancel(self) -> None:
        """Send no more heartbeats. Does not wait for one that is being sent."""
        self._stop.set()

    def stop(self) -> None:
        """Cancel, and wait up to a second for the thread: if the database does not answer, it ends later by itself."""
        self.cancel()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def _run(self) -> None:
        while not self._stop.wait(self._pauses.pause(self._failures) if self._failures else self._seconds):
            if not self.lost.is_set():  # no heartbeat for a lost claim, but its main thread may have stalled
                self._send_heartbeat()
            if time.monotonic() - self._progressed > self._stall_seconds and not self._stop.is_set():
                self._on_stall()
                return

    def _send_heartbeat(self) -> None:
        try:
            is_ours = self._send(*self._position)
        except Exception as error:  # noqa: BLE001 (if this thread dies, a live trial is lost)
            self._failures += 1
            self._progressed = time.monotonic()  # waiting for the database is not a stall
            logger.warning(
                "Heartbeat failed (%s); retrying.", type(error).__name__, extra={"action": "heartbeat_failed"}
            )
            return
        self._failures = 0
        if not is_ours and not self._stop.is_set():
            self.lost.set()
