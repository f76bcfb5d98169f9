"""int8: the methods, their calibration, and the choice of the file that is kept."""
