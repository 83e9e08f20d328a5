"""The only place that knows Scholaria's names: which keys may come back after a restore, and how rows and points correspond."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: What becomes of a class of Redis keys in a restore. ``restore``: they come back as they were. ``drop``: they do not.
#: ``park``: they come back under another name, where nobody acts on them.
KeyAction = Literal["restore", "drop", "park"]
KEY_ACTIONS: tuple[KeyAction, ...] = ("restore", "drop", "park")


@dataclass(frozen=True, slots=True)
class KeyClass:
    """Redis keys that are treated alike. ``patterns`` are prefixes (ending with ``*``) or exact names."""

    name: str
    patterns: tuple[str, ...]
    action: KeyAction
    why: str
    #: Valid sessions among them let people in again: the plan names them.
    sessions: bool = False
    #: A Celery queue or its bookkeeping: the plan lists tasks that refer to rows which will not exist.
    tasks: bool = False


#: The first class that matches a key counts; keys that match none are restored.
KEY_CLASSES: tuple[KeyClass, ...] = (
    KeyClass("embedding_cache", ("embedding_cache:*",), "restore", "made for money, and right whenever the text is the same"),
    KeyClass("rag_query", ("rag_query:*",), "drop", "answers of a few minutes' life, built from data of another time"),
    KeyClass(
        "celery",
        # Celery's queues of other priorities: the name, two separators and the priority.
        ("celery", "celery\x06\x16*", "unacked", "unacked_index", "unacked_mutex", "_kombu.binding.*"),
        "park",
        "running old tasks again costs money and writes what was written already",
        tasks=True,
    ),
    KeyClass("celery_results", ("celery-task-meta-*",), "restore", "results are only read"),
    KeyClass("sessions", ("session:*", "sessions:*"), "restore", "people stay signed in", sessions=True),
)

#: The table whose rows are the points' texts, its key and the columns that a point repeats.
CHUNK_TABLE = "public.rag_contextitem"
CHUNK_ID = "id"
#: Column of the table → field of the point's payload.
CHUNK_COLUMNS = {"content": "content", "context_id": "context_id"}
#: The collection's names, as one or the other version of the application calls it.
COLLECTIONS = ("scholaria_documents", "context_items")


@dataclass(frozen=True, slots=True)
class RowKind:
    """A table whose rows queued tasks speak of: what people call a row, and the sequence that gives out its ids."""

    noun: str
    table: str
    key: str
    sequence: str


_CONTEXT = RowKind("context", "public.rag_context", "id", "public.rag_context_id_seq")
_ITEM = RowKind("context item", CHUNK_TABLE, CHUNK_ID, "public.rag_contextitem_id_seq")
_TOPIC = RowKind("topic", "public.rag_topic", "id", "public.rag_topic_id_seq")
_USER = RowKind("user", "public.auth_user", "id", "public.auth_user_id_seq")

#: A named argument of any task → whose id it is.
TASK_NAMED: Mapping[str, RowKind] = {
    "context_id": _CONTEXT,
    "context_item_id": _ITEM,
    "item_id": _ITEM,
    "topic_id": _TOPIC,
    "user_id": _USER,
}
#: Last part of a task's name → whose ids its unnamed arguments are, in order. Other tasks' unnamed arguments are not judged.
TASK_UNNAMED: Mapping[str, tuple[RowKind, ...]] = {
    "process_document": (_CONTEXT,),
    "ingest_document": (_CONTEXT,),
    "embed_context_item": (_ITEM,),
    "regenerate_embedding": (_ITEM,),
}
