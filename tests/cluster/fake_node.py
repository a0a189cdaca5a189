"""A node as the supervisor sees it, and nothing behind that: for the supervisor's tests.

It takes a real node's command line, answers `GET /health/ready`, and ends on SIGTERM with exit 0.
`--behave` makes it misbehave: `die` ends it at once, `unready` never gets ready, `stubborn` ignores
SIGTERM, `unclean` ends with exit 3 on SIGTERM.
"""

import argparse
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers every GET in the same way."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line."""


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--node-id", "--http-address", "--raft-address", "--data-dir", "--behave"):
        parser.add_argument(name)
    options, _ = parser.parse_known_args()
    print(f"{options.node_id} begins", flush=True)
    if options.behave == "die":
        sys.exit("no reason given")
    if options.behave == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        code = 3 if options.behave == "unclean" else 0
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
    Handler.status = 503 if options.behave == "unready" else 200
    host, port = options.http_address.split(":")
    HTTPServer((host, int(port)), Handler).serve_forever(poll_interval=0.01)


if __name__ == "__main__":
    main()
