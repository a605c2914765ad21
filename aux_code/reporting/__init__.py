"""From the stages' result files to tables, plots, a report and a summary."""
