"""The simulated market, model hub and rented servers, on loopback, reached as real ones: by HTTP and SSH.

    market, listing, orders, billing, ...   the market's rules, without I/O
    app, server, process                    its HTTP server, as a process of its own
    hub                                     the model hub's routes
    rack, node, isolation                   rented servers: real SSH, real commands, each in its own root
    payload/                                what runs inside them

It may import `clorefleet.domain`, and nothing of the code that it is there to test.
"""
