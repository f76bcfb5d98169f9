"""Published data sets: download, check, unpack."""
