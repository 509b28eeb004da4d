"""Published results for the benchmark's metrics, with their sources; scenes, sizes and hardware differ."""

from __future__ import annotations

PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "Style-NeRF2NeRF, Fujiwara et al. 2024, ablation on 2 scenes × 5 prompts": {
        "views not aligned": {"clip_tids": 0.125, "clip_dc": 0.932, "warp_error": 0.345},
        "field from scratch": {"clip_tids": 0.073, "clip_dc": 0.917, "warp_error": 0.367},
        "RGB loss": {"clip_tids": 0.127, "clip_dc": 0.917, "warp_error": 0.351},
        "full": {"clip_tids": 0.162, "clip_dc": 0.928, "warp_error": 0.337},
    },
    "Tanks and Temples, SSGaussian's table (secondary source)": {
        "ARF": {"short_lpips": 0.049, "short_rmse": 0.041, "long_lpips": 0.128, "long_rmse": 0.082},
        "StyleGaussian": {"short_lpips": 0.036, "short_rmse": 0.030, "long_lpips": 0.077, "long_rmse": 0.071},
        "G-Style": {"short_lpips": 0.035, "short_rmse": 0.035, "long_lpips": 0.089, "long_rmse": 0.072},
        "SSGaussian": {"short_lpips": 0.031, "short_rmse": 0.028, "long_lpips": 0.073, "long_rmse": 0.068},
    },
    "Tanks and Temples, Train (secondary source)": {
        "photos": {"short_lpips": 0.070, "short_rmse": 0.069},
        "StyleGaussian": {"short_lpips": 0.033, "short_rmse": 0.038},
        "G-Style": {"short_lpips": 0.042, "short_rmse": 0.052},
        "StylizedGS": {"short_lpips": 0.016, "short_rmse": 0.023},
        "SGSST": {"short_lpips": 0.038, "short_rmse": 0.047},
        "Stylos": {"short_lpips": 0.030, "short_rmse": 0.026},
    },
}
"""Results by source, method and metric; metrics that the benchmark also computes have the same names as in its JSON."""
