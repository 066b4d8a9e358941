"""`python -m triptych.examples.model_server --port PORT`: serve the scripted model."""

from __future__ import annotations

from triptych.examples.model_server.app import create_app
from triptych.examples.serving import arguments, serve


def main() -> None:
    options = arguments("A scripted model behind the HTTP APIs of the providers.").parse_args()
    serve(create_app(), options.host, options.port)


if __name__ == "__main__":
    main()
