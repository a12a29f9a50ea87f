"""What runs leave to read: summaries, records, tables, figures."""
