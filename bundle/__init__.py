"""What packages the repository: for MONAI's model zoo, and for MONAI Label. No part of the bundle itself."""
