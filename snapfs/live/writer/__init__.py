"""The one writing connection of the namespace: its transactions, and what memory keeps beside them."""
