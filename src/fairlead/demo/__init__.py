"""The demonstration: engines, gateway and clients on this machine, and what each policy does to them."""
