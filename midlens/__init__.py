"""The command line: one file per subcommand, each a frozen dataclass of options and a call."""
