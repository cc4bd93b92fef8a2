"""CA-Stream and MHEX: wrappers around a network, and what they have to know of it."""
