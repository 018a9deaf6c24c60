"""Pictures: of a report, for light pages and dark ones, and of a scaling study."""
