"""The commands of `exesdb` that talk to a running cluster.

Every command is a module with `main(argv, prog)`, which parses its own options and returns the exit
code; `cluster.__main__` has the list. They share four things:

`options`   the parser, and the options that every command has (`--url`, `--store`, `--json`)
`ending`    how a command ends: its exit codes, and errors as one line or as JSON
`incoming`  what a file or stdin has, as it comes
`showing`   how an event looks on a line, for a person or as JSON

Results go to stdout and everything else to stderr, so that a pipe gets results only. Nothing holds
more than a page of events, however much is read or appended.
"""
