"""What a run has seen: counts, times and differences, gathered from all its threads."""

import collections
import threading
import time


class Report:
    """Counts by name, the slowest of each time by name, and what is wrong."""

    def __init__(self):
        self.began = time.monotonic()
        self.counts = collections.Counter()
        self.slowest_s = {}
        self.wrong = []
        self.lock = threading.Lock()

    def add(self, name, count=1):
        with self.lock:
            self.counts[name] += count

    def took(self, name, seconds):
        with self.lock:
            self.slowest_s[name] = max(self.slowest_s.get(name, 0.0), seconds)

    def difference(self, what, count=1):
        """Something that must not be: `count` goes into the sum of the last line."""
        with self.lock:
            self.wrong.append((what, count))
        self.say(f"DIFFERENCE: {what}")

    def differences(self):
        with self.lock:
            return sum(count for _, count in self.wrong)

    def say(self, text):
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)
