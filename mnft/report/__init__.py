"""The report of a run or a comparison: one page that needs nothing else, and the model card."""
