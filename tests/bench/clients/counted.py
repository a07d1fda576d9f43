"""Counts frames as a client gets them, and tells how long they took, from the first to the last, when all are there."""

import json
import os
import sys
import time

PORT, FRAMES, REST = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
SYMBOLS = [f"S{n:03d}USDT" for n in range(300)]
TRADES = [f"{symbol.lower()}@aggTrade" for symbol in SYMBOLS]
QUOTES = [f"{symbol.lower()}@bookTicker" for symbol in SYMBOLS]
WS = f"ws://127.0.0.1:{PORT}"


class Counted:
    def __init__(self) -> None:
        self.frames, self.began, self.cpu = 0, 0.0, 0.0

    def __call__(self, frames: int = 1) -> bool:
        """True: that was the last, and it has been told."""
        if not self.frames:
            self.began, self.cpu = time.monotonic(), time.process_time()
        self.frames += frames
        if self.frames < FRAMES:
            return False
        seconds = time.monotonic() - self.began
        print(json.dumps({"frames": self.frames, "seconds": seconds, "cpu": time.process_time() - self.cpu}), flush=True)
        return True

    def over(self) -> None:
        """End at once: what a client does when it is closed is nobody's business here."""
        sys.stdout.flush()
        os._exit(0)
