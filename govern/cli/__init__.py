"""The command line: one module per family of verbs, above everything else in the house."""
