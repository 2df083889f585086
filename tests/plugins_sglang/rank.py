"""One rank of two: does a random run and prints each batch, and at the end what everybody was charged."""

import json

from tests.plugins_sglang import stubs

stubs.install()

from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402 - after the stand-ins

from fairlead.plugins import sglang as plugin  # noqa: E402
from tests.plugins_sglang.bare_sglang import Bare, publish_config  # noqa: E402
from tests.plugins_sglang.runs import drive  # noqa: E402


def main() -> None:
    plugin.register()
    HookRegistry.apply_hooks()
    publish_config()
    bare = Bare(tokens=1010)
    drive(bare, 5, lambda batch: print(json.dumps([req.rid for req in batch.reqs] if batch else [])))
    clients = bare.scheduler.fairlead.book.figures.clients
    print(json.dumps({client: figures.as_dict() for client, figures in clients.items()}))


main()
