"""What a run reports: metrics of each stage, pictures, curves and report.html."""
