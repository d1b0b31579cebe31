"""The command line: `idefics-chat`, a module a command or group of commands."""
