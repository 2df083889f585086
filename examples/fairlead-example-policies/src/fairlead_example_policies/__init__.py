"""Two scheduling policies for fairlead."""
