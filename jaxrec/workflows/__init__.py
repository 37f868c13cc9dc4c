"""Stages that turn a config into trained networks, rows and reports."""
