"""One trained network in use: predict, embed, Grad-CAM, export, convert."""
