"""From a config to an experiment, and its run: the only room that sees a config."""
