"""Hands over to the stand-in, under the interpreter that has llama.cpp."""

import os
import sys

if __name__ == "__main__":
    python, program = os.environ["SANDBOX_PYTHON"], f"{os.environ['SANDBOX_HOME']}/payload/sglang_server.py"
    os.execv(python, [python, "-E", "-s", program, *sys.argv[1:]])
