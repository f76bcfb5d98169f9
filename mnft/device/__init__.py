"""The machine that work runs on: device, precision, memory."""
