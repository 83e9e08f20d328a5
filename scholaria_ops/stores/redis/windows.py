"""Windows of expiry: what keeps a comparison meaningful after some keys have expired.

Keys are fingerprinted per window in which they expire. Once a window has passed, its keys may be gone, and nothing can
be said about it; every window that lies ahead, and the keys that never expire, must still be exactly as they were.
Windows are narrow near the cut and wider further out, so that whenever a set is compared, the one window that is
just passing holds few of the keys, and the list stays short.
"""

from __future__ import annotations

from bisect import bisect_left

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
#: (until this far after the origin, width), in seconds.
_LADDER = ((2 * _HOUR, 5 * _MINUTE), (7 * _DAY, _HOUR), (45 * _DAY, 6 * _HOUR), (3 * 365 * _DAY, 30 * _DAY))
#: End of the last window: later than any expiry (63 bits of milliseconds).
FAR = 1 << 54


class Windows:
    """The windows laid out from ``origin`` (seconds since the epoch). The first one holds all that expired before it."""

    def __init__(self, origin: int) -> None:
        self.origin = origin
        ends, at = [origin], origin
        for until, width in _LADDER:
            while at < origin + until:
                at += width
                ends.append(at)
        #: Ends of the windows, rising. An expiry belongs to the first window that ends later.
        self.ends = [*ends, FAR]

    def start(self, end: int) -> int:
        """Begin (seconds since the epoch) of the window that ends there."""
        at = bisect_left(self.ends, end)
        return self.ends[at - 1] if at else 0
