"""Affine steering: edits of activations fitted in closed form, with strength, scope, gates and what they disturb."""
