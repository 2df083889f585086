"""Routing: which worker? One file a policy, one line here."""
