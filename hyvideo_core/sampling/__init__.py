"""From noise to latents: noise, noise levels, solvers, guidance and the loop over steps."""
