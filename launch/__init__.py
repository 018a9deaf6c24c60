"""Starting runs: the ranks of one machine."""
