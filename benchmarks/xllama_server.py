"""llama-server as xllamacpp embeds it, with settings from the command line. Runs in xllamacpp's environment, as a file."""

import json
import sys
import threading

import xllamacpp  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    """The argument: JSON with model, port, slots, context (of each slot), threads and batch."""
    wanted = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    params.port = wanted["port"]
    params.n_parallel = wanted["slots"]
    params.n_ctx = wanted["slots"] * wanted["context"]
    params.n_batch = params.n_ubatch = wanted["batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
