"""The looks of the demo world, one module each: `draw(scene, size)` gives the picture."""
