"""`python -m triptych.examples.crm --port PORT`: serve the CRM.

The key that clients must send is read from CRM_KEY.
"""

from __future__ import annotations

import os

from triptych.examples.crm.app import create_app
from triptych.examples.serving import arguments, serve

DEMO_KEY = "demo-key"


def main() -> None:
    options = arguments("A CRM that describes itself at /openapi.json.").parse_args()
    serve(create_app(os.environ.get("CRM_KEY", DEMO_KEY)), options.host, options.port)


if __name__ == "__main__":
    main()
