"""What the Python programs share: each works in rounds until the file HF_STOP is there."""
import json
import os

ERRORS_MAX = 20
ROUNDS_MAX = 100000


class Tally:
    """Counts rounds and keeps errors; says so in one line of JSON at the end."""

    def __init__(self, version):
        self.version = version
        self.rounds = 0
        self.errors = []
        self.connections = set()
        self.stop = os.environ["HF_STOP"]
        self.me = "me-0"

    def goes_on(self):
        return (self.rounds < ROUNDS_MAX and len(self.errors) < ERRORS_MAX
                and not os.path.exists(self.stop))

    def error(self, op, err):
        code = getattr(err, "pgcode", None) or getattr(err, "sqlstate", None) or ""
        self.errors.append({"op": op, "code": str(code),
                            "text": "%s: %s" % (type(err).__name__, err)})

    def want(self, op, got, want):
        if got != want:
            self.errors.append({"op": op, "code": "", "text": "got %r, want %r" % (got, want)})

    def print(self):
        print(json.dumps({"version": self.version, "rounds": self.rounds, "errors": self.errors,
                          "connections": len(self.connections)}))
