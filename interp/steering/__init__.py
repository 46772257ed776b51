"""Affine steering: edits of activations fitted in closed form, with strength, scope, gates and what they disturb.

    fit, methods, fit_data        prompts in, a `Steering` out: test of a signal, closed form, calibration, budget
    closed_forms, transport, gating, sae_features        the fitters, from means, moments, probes and decoder rows
    edits                         what they return: affine, diagonal, clamp and gated edits, frozen and callable
    diagnostics                   alpha with its noise, significance, leak, disturbance
    steering, scopes, composition, fold, lora, vectors   the fitted value: where it acts, files, weights, other formats
    contrast, neutral, evaluation, axbench               prompts to fit on, and what steering does

The theory is one theorem, stated in `closed_forms`; statistics come from `interp.moments`.
"""
