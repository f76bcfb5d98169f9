"""Several models side by side: accuracy, cost, speed."""
