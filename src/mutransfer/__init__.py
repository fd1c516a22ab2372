"""mutransfer: tune a small model, train a big one."""
