"""The `nameko` command with changed constants, so pauses take seconds, not minutes: `… JSON run services.orders`.

JSON: {"services.notifications_mail": {"LEASE_SECONDS": 2}}
"""

import importlib
import json
import sys

import eventlet

# Before all other imports, as in `nameko run`.
eventlet.monkey_patch()

constants = json.loads(sys.argv.pop(1))
for name, values in constants.items():
    module = importlib.import_module(name)
    for constant, value in values.items():
        if not hasattr(module, constant):
            raise SystemExit(f"{name} has no {constant}.")
        setattr(module, constant, value)

from nameko.cli.main import main  # noqa: E402

main()
