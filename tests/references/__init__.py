"""What the deployment publishes about itself."""
