"""What MONAI's model zoo asks of a bundle, one check for each demand."""
