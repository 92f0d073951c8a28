"""What a person reads at the end: report.html, report.json and the table of the terminal."""
