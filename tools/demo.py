"""Serve the bundled model, stream over gRPC and over HTTP, stop it; then show how a long prompt delays short ones."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from medha_jax.client import Accepted, Client, Delta, Finished

# all servers have the same sizes, so programs are compiled once
SIZES = ["--mesh", "cpu-small", "--max-context", "4096", "--pool-tokens", "8192"]
# a line about a later shape would stand in the middle of the text
SERVE = ["serve", "--model", "tiny", "--port", "0", *SIZES, "--compile-all-first"]
CONVOY = ["bench", "convoy", *SIZES, "--policies", "fcfs-whole,lars", "--long-prompt", "4000", "--long-output", "8"]
CONVOY += ["--shorts", "5", "--short-output", "16", "--interval", "0.3"]
COMMAND = [sys.executable, "-m", "medha_jax.cli"]
PROMPT = "import unittest"
STOP_SECONDS = 30
CHOICES = '"choices"'


def main() -> int:
    """Run the demo; return the process's exit status."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free, most likely still when the server takes it
    options = [*SERVE, "--http-port", str(port)]
    print("$ medha-jax", *options, flush=True)
    began = time.monotonic()
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            if not ready:
                print("demo: the server did not start", file=sys.stderr)
                return 1
            print(f"{ready.strip()} after {time.monotonic() - began:.0f} s", flush=True)
            stream(ready.split()[-1])
            stream_http(f"http://127.0.0.1:{port}/v1/completions")
        finally:
            print("\nsending SIGTERM", flush=True)
            server.send_signal(signal.SIGTERM)
            code = server.wait(STOP_SECONDS)
    print(f"the server ended with exit code {code} after {time.monotonic() - began:.0f} s in all")
    return code or convoy(began)


def convoy(began: float) -> int:
    """Run short requests behind a long one under two policies; return the exit code."""
    print("\nOne long prompt, and short ones that come behind it:\n$ medha-jax", *CONVOY, flush=True)
    code = subprocess.run([*COMMAND, *CONVOY], check=False).returncode
    print(f"the demo ended with exit code {code} after {time.monotonic() - began:.0f} s in all")
    return code


def stream(address: str) -> None:
    """Print a completion while it streams."""
    print(f"streaming a completion of {PROMPT!r} from {address}\n\n{PROMPT}", end="", flush=True)
    with Client(address) as client:
        for event in client.generate(PROMPT, max_tokens=80, seed=1, timeout=60):
            match event:
                case Accepted():
                    pass
                case Delta(text=text):
                    print(text, end="", flush=True)
                case Finished(reason=reason, usage=usage, timings=timings):
                    print(
                        f"\n\n{usage.prompt_tokens} prompt tokens, first token after {1000 * timings.ttft_s:.0f} ms; "
                        f"{usage.output_tokens} tokens in {timings.e2e_s:.2f} s; {reason}",
                        end="",
                    )


def stream_http(url: str) -> None:
    """Print what a completion over HTTP sends, as it comes."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4, "seed": 1, "stream": True})
    print(f"\n\nThe same model behind the OpenAI API:\n$ curl -N {url} -d '{body}'", flush=True)
    with urllib.request.urlopen(url, body.encode(), timeout=60) as answer:
        for line in filter(None, (line.decode().strip() for line in answer)):
            print(line if len(line) < 80 else f"{line[:20]} … {line[line.find(CHOICES) :]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
