"""python -m llmgallery.worker FD: the child process of one model, talking over the inherited socket FD."""

from __future__ import annotations

import faulthandler
import os
import sys


def main() -> None:
    os.dup2(2, 1)  # libraries print; fd 1 must never be mistaken for a result
    faulthandler.enable()  # a native crash leaves the Python stack in the log
    sys.setswitchinterval(0.0005)  # at the default of 5 ms a busy Python thread doubles a short engine step
    from llmgallery.worker.child import serve

    serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
