"""What every room uses: named trees, files, configs, the command line."""
