"""Report on runs as one HTML file: `python scripts/report.py runs/*`."""

from lstmlm.cli import main, report

if __name__ == "__main__":
    main(report)
