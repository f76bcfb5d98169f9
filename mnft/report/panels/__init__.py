"""The panels that every task has: what a run learned from, how it went, and what came of it."""
