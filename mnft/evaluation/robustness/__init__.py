"""How a model's figures fall when a device's images are worse than those that it learned from."""
