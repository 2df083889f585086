"""HTTP/1.1 for the hot path: a server and a client over uvloop and llhttp."""
