"""The main job, entered by reproduce.py only: rows of tables, steps, running them, the report."""
