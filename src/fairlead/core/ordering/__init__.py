"""Ordering: in one queue, who goes next? One file a policy, one line here."""
