"""Serve Kinto on 127.0.0.1: argument 1 is the port, argument 2 the settings as JSON.

Prints the URL. Ends with its standard input, so it ends with a test run that was killed.
"""

import json
import sys
import threading

from kinto import main
from waitress import create_server

server = create_server(main({}, **json.loads(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]))
threading.Thread(target=server.run, daemon=True).start()
sys.stdout.write(f"http://127.0.0.1:{server.effective_port}/v1\n")
sys.stdout.flush()
sys.stdin.read()
