"""What pytorch-grad-cam takes: CAM objects and reshape transforms."""
