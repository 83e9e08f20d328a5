"""Plans that people agree to, named by their digest."""

from __future__ import annotations

import hashlib
import json

from scholaria_ops.catalogue.evidence.base import Model


class Agreed(Model):
    """A plan that is shown first, and carried out only as it was shown."""

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of every word of the plan."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
