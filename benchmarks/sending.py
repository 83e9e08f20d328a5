"""Send a set as ``ship`` does, with nothing read back: what the transfer alone takes. For measuring only; nothing is proven by it."""

from __future__ import annotations

import sys

from scholaria_ops.errors import ConfigError
from scholaria_ops.offsite.base import Confirmation, FileToShip
from scholaria_ops.offsite.s3.sending import Sent
from scholaria_ops.offsite.s3.shipping import Shipping
from scholaria_ops.operations.offsite import ship
from scholaria_ops.operations.services import make_services
from scholaria_ops.settings import load_settings


def main(set_id: str) -> None:
    """Ship the set to the place that the settings name and print how long its sending took, in seconds."""
    Shipping._confirm = _believe  # type: ignore[assignment,method-assign]  # the product itself has no such way
    services = make_services(load_settings())
    if services.offsite is None:
        raise ConfigError("no offsite place is set")
    report = ship(services, services.catalogue.find(set_id)).report
    sys.stdout.write(f"step sending {report.sending_s:.3f}\n")


def _believe(_self: Shipping, _file: FileToShip, _sent: Sent) -> Confirmation:
    return "checksum"


if __name__ == "__main__":
    main(sys.argv[1])
