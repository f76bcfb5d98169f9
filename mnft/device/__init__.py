"""The machine that computes: devices, precision, memory, and several processes."""
