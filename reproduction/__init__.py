"""The main job, entered by reproduce.py only: the tables' rows, their steps, running them, the report."""
