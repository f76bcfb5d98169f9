"""`mnft data check`: what would spoil a training."""
