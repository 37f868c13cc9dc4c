"""Stages that turn typed experiments into trained networks, rows and reports."""
