"""`python -m triptych.examples.helpdesk --port PORT --data FILE.sqlite`: serve the helpdesk.

The token that clients must send is read from HELPDESK_TOKEN.
"""

from __future__ import annotations

import os
from pathlib import Path

from triptych.examples.helpdesk.app import create_app
from triptych.examples.helpdesk.store import Store
from triptych.examples.serving import arguments, serve

DEMO_TOKEN = "demo-token"  # noqa: S105 - the demo's, on 127.0.0.1


def main() -> None:
    parser = arguments("A helpdesk that honours Idempotency-Key and can be told to fail.")
    parser.add_argument("--data", type=Path, required=True, help="SQLite file; created when it is not there")
    options = parser.parse_args()
    with Store(options.data) as store:
        serve(create_app(store, os.environ.get("HELPDESK_TOKEN", DEMO_TOKEN)), options.host, options.port)


if __name__ == "__main__":
    main()
