"""The Clore marketplace over HTTP, as the fleet sees it. The marketplace's oddities stop in this folder.

    transport   one bounded HTTP exchange; where the key becomes a header; the only user of httpx
    limiter     how soon the next request may be made, by priority, across threads and processes
    answers     what an answer means: accepted, refused with a typed error, or in doubt
    wire        tolerant reading of the service's JSON; exact numbers; a bad record spoils only itself
    convert     wire records to offers, orders, wallets, fees and coin rates
    client      `MarketClient`: the calls
    rent        `RentProtocol`: the way from a price guard that the service chokes on to a safe answer

`docs/market.md` says what each call assumes and what nobody here has seen live.
"""
