"""What the console's pages show: followed from the logs of volumes, and made into rows, words and plots."""
