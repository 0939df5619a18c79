"""Networks that losses and metrics look through: VGG, LPIPS, DINO."""
