"""The command line `rqtool`: parse, call, show."""
