"""Restoring live stores: plan, journal, fence, saga, recovery, undo.

* ``plan``: what would be done and what it would cost; the dry run is this and nothing else.
* ``journal``: what was begun, on disk before it begins, so that a killed restore is taken back or finished.
* ``fence``: stopping and starting whoever writes to the stores.
* ``saga``: stage all, switch all, or take all of it back.
* ``recover``: what the next command does about a restore that was cut off.
* ``undo``: going back to the state before the last restore, and removing what that needs.
"""
