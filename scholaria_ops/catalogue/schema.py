"""``python -m scholaria_ops.catalogue.schema`` prints the JSON Schema of the manifest, as committed in ``docs/``."""

from __future__ import annotations

import json
import sys

from scholaria_ops.catalogue.manifest import json_schema

if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1, sort_keys=True) + "\n")
