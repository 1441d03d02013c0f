"""Launch settings for accelerate."""
