"""One module a verb: wires the parts, writes files, prints."""
