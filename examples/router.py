"""A router of your own around fairlead's core: python router.py PORT http://ENGINE:PORT ..."""

import itertools
import json
import queue
import secrets
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import fairlead

dispatcher = fairlead.make_dispatcher(order="dlpm", policy="marginal")
deciding = threading.Lock()
turns: dict[int, queue.SimpleQueue[fairlead.Command]] = {}
numbers = itertools.count(1)
seed = fairlead.seed_key("any model", salt=secrets.token_hex())  # nobody outside can compute a block's key


def now() -> int:
    return time.monotonic_ns() // 1000


def tell(event: fairlead.Event) -> None:
    """Let the core decide, and wake the requests that its commands are about."""
    with deciding:
        for command in dispatcher.step(event):
            turns[command.rid].put(command)


class Router(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        rid, client = next(numbers), self.headers.get("x-api-key", "default")
        keys = fairlead.byte_keys(body, 64, seed)
        turn = turns[rid] = queue.SimpleQueue()
        tell(fairlead.Arrived(now(), fairlead.Request(rid, client, len(body) // 4 + 1, keys, streamed=False)))
        status, answer = 503, b""
        while isinstance(command := turn.get(), fairlead.Dispatch):
            engine = Request(command.worker + self.path, body, {"content-type": "application/json"})
            try:
                with urlopen(engine, timeout=600) as response:
                    status, answer = response.status, response.read()
                usage = json.loads(answer)["usage"]
            except (OSError, ValueError, KeyError) as error:
                tell(fairlead.Failed(now(), rid, retryable=True, reason=str(error)))
            else:
                prompt, output = usage["prompt_tokens"], usage["completion_tokens"]
                tell(fairlead.Finished(now(), rid, prompt, None, output))
                break
        else:
            status, answer = 503, json.dumps({"error": repr(command)}).encode()
        del turns[rid]
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def ticking() -> None:
    while True:
        time.sleep(0.1)
        tell(fairlead.Tick(now()))


if __name__ == "__main__":
    for url in sys.argv[2:]:
        tell(fairlead.WorkerUp(now(), url, fairlead.Limits(64, 200_000)))
    threading.Thread(target=ticking, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Router).serve_forever()
