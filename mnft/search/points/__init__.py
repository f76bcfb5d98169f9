"""What a search may try, and which point each trial tries."""
