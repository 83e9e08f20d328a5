"""What a restore is asked to do, beside the set that it takes."""

from __future__ import annotations

from pydantic import Field

from scholaria_ops.catalogue.evidence.base import Model, StoreName
from scholaria_ops.profiles.scholaria import KeyAction


class RestoreOptions(Model):
    """What was asked for, beside the set."""

    #: Empty for every store that the set has.
    components: tuple[StoreName, ...] = ()
    #: Take a safety set of what is replaced first.
    safety: bool = True
    #: Recover a plain Qdrant collection in place, once the file was proven beside.
    qdrant_in_place: bool = False
    #: Restore although replication slots, publications, subscriptions or standbys exist.
    accept_replication: bool = False
    #: Class of Redis keys → what becomes of it, where that is not the profile's.
    key_actions: dict[str, KeyAction] = Field(default_factory=dict)
