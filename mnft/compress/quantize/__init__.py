"""int8: ways, calibration, and which one is kept."""
