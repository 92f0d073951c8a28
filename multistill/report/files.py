"""Names of the files of a report."""

JSON = "report.json"
HTML = "report.html"
