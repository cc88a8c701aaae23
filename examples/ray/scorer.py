"""A Ray Data worker around `rerankd`.

Each worker starts a server of its own on a free port of the loopback, keeps it as long as it lives, and
sends it one batch after the other. The server ends with its worker, however that ends.
"""

import ctypes
import json
import os
import signal
import subprocess
import threading
import urllib.request

# Most pairs of one request; `--max-documents` of the server.
LIMIT = 1000
START_SECONDS = 60
ANSWER_SECONDS = 600


def die_with_parent():
    """Has the kernel end the server when its worker is killed: nobody else would."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Rerankd:
    """Adds a column `score` to batches with `query` and `document`."""

    def __init__(self, program, model=None, threads=1, query="query", document="document"):
        self.query, self.document = query, document
        command = [program, "serve", "--listen", "127.0.0.1:0", "--threads", str(threads), "--log-format", "json"]
        if model is not None:
            command += ["--model", model]
        self.server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        too_late = threading.Timer(START_SECONDS, self.server.kill)
        too_late.start()
        self.address = self.wait_until_ready()
        too_late.cancel()
        # Nobody reads the log; a full pipe would stop the server.
        threading.Thread(target=self.server.stderr.read, daemon=True).start()

    def wait_until_ready(self):
        """Reads the log up to `ready`; returns where the server listens."""
        address, seen = None, []
        for line in self.server.stderr:
            seen.append(line)
            event = json.loads(line) if line.startswith("{") else {}
            fields = event.get("fields", event)
            if fields.get("message") == "starting":
                address = fields["listen"]
            if fields.get("message") == "ready":
                return address
        raise RuntimeError("`rerankd` did not start:\n" + "".join(seen))

    def __call__(self, batch):
        pairs = [[str(q), str(d)] for q, d in zip(batch[self.query], batch[self.document])]
        scores = []
        for start in range(0, len(pairs), LIMIT):
            scores += self.scores(pairs[start : start + LIMIT])
        return batch | {"score": scores, "worker": [os.getpid()] * len(scores)}

    def scores(self, pairs):
        body = json.dumps({"pairs": pairs}).encode()
        answer = urllib.request.urlopen(f"http://{self.address}/predict", data=body, timeout=ANSWER_SECONDS)
        return json.load(answer)["scores"]
