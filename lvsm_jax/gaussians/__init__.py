"""3D Gaussians: their projection, an exact differentiable rasteriser, and files of viewers."""
