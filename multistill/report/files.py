"""Names of the files of a report, and of the page on its data."""

JSON = "report.json"
HTML = "report.html"
DATA_PAGE = "data.html"
