"""Inference with a trained network: predict, embed, Grad-CAM, export, convert."""
