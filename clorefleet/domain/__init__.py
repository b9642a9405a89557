"""The values of clorefleet: frozen, valid by construction, free of I/O, clocks and randomness."""
