"""Style-NeRF2NeRF: restyle a radiance field through jointly restyled views of it."""
