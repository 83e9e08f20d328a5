"""Evidence: what was measured of each store at the very cut that its dump shows. One model per store."""

from __future__ import annotations
