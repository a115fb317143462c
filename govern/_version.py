"""The version of the distribution, in one place: packaging reads it, Hello carries it, `--version` prints it."""

VERSION = "0.1.0"
