"""What a report shows of a classifier, from the files of its evaluation."""
