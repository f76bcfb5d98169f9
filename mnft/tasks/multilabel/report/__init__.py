"""What a report shows of a multi-label classifier, from the files of its evaluation."""
