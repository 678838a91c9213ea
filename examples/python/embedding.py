"""A server inside a program of one's own: started, asked and stopped in one asyncio loop.

    python examples/python/embedding.py 'import unittest'

The engine has a thread of its own, so the loop stays free. Clients of other processes can use the printed address, too.
"""

import asyncio
import sys

from medha_jax.client import AsyncClient, Delta
from medha_jax.config import BUNDLED_MODEL, RuntimeConfig, load_mesh
from medha_jax.server.assembly import assemble
from medha_jax.server.server import serve
from medha_jax.server.settings import ServerSettings


async def main(prompt: str) -> int:
    """Serve the bundled model, complete one prompt, and stop; returns the process's exit status."""
    # without an address of another machine: ServerSettings refuses those that are not protected by TLS
    settings = ServerSettings(port=0, access_log="off")
    runtime = RuntimeConfig(model=BUNDLED_MODEL, mesh=load_mesh("cpu-small"), max_context=1024)
    model, loader = assemble(runtime)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stopping = asyncio.Event()
    serving = asyncio.create_task(serve(settings, model, loader, announce=ready.set_result, stopping=stopping))
    await asyncio.wait((ready, serving), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving  # raises what kept it from starting
        return 1
    line = ready.result()  # "serving tiny on 127.0.0.1:44721"
    print(line)
    async with AsyncClient(line.split()[-1]) as client:
        async for event in client.generate(prompt, max_tokens=20, temperature=0):
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
    print()
    stopping.set()  # running streams have `drain_seconds` to end
    await serving
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
