"""Ray-traced scenes with exact cameras, depth, normals and alpha.

Signed distance functions are sphere-traced in torch: no GPU, compiler or asset is needed, and the exact shape is
available as ground truth for shape metrics.
"""
