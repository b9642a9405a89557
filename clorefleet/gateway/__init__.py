"""One OpenAI-compatible address on this machine, in front of all replicas.

token      the key that every request must show; only its digest is kept in memory
routing    which replica takes a request: pure values under one lock
guard      who may ask at all: token, `Host`, `Origin`
prompt     the body of a request: bounded, and read only for its model
problem    refusals in the shape that OpenAI clients read
upstream   one HTTP client per replica, and whether a request can have reached it
usage      what one request used, for whoever counts
relay      one request from first check to last byte
app        the routes
server     runs the app on a loopback port, in a thread of its own
service    the gateway as the daemon holds it
"""
